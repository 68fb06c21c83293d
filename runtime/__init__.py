"""Run exported event networks without PyTorch (numpy, numba, scipy, safetensors)."""
