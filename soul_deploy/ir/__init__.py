"""The spiking graph as frozen data: nodes, edges, neurons, JSON."""
