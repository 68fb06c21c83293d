"""NIR graphs, written and read."""
