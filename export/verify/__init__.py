"""Proof that an exported file is its model: the three checks."""
