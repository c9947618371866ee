"""Pruning: which channels and weights go, how they are scored, and taking them out of the graph."""
