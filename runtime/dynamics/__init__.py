"""Neurons with more state than a membrane, or that send more than 0 and 1; one file per family."""
