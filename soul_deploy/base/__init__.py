"""The ground without PyTorch: errors, files, what is printed, memory limits, lazy imports."""
