"""The model at rest and its file; other people's state dicts."""
