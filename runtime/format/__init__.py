"""The event file as validated data: layers, synapses, tap tables."""
