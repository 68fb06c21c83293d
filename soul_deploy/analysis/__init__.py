"""Numbers about a network: operation counts, connectivity, energy reports, other tools' rules."""
