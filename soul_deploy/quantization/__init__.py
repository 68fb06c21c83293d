"""From a trained network of real numbers to one of integers (docs/fixed-point.md)."""
