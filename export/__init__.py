"""A model leaves: ONNX, event network; verify proves that what left is the same."""
