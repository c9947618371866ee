"""Data: rows on disk, the four roles they play, and the metrics that score a model on them."""
