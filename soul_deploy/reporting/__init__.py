"""A report to look at, and a model card, of model files, exports and what commands printed."""
