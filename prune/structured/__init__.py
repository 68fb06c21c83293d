"""Spiking channel activity (SCA; Li et al., ICML 2024): which channels go."""
