"""Decide what goes (masks, a removal plan), then remove it."""
