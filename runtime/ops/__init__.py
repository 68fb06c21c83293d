"""Operation counts and energy of an event network."""
