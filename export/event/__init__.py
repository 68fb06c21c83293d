"""From a model to an event network file."""
