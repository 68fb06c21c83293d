"""Plan what can be removed exactly, then cut it."""
