"""A network that runs: threads, samples, streams."""
