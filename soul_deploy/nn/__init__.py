"""The spiking graph as a PyTorch module: neurons, layers, masks, surrogate gradients."""
