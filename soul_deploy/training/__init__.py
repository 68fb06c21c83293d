"""Training loops, checkpoints and what both resume from."""
