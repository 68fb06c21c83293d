"""Images and labels: data sets by name, files, and the order of samples in an epoch."""
