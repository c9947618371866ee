"""The commands of `tuner` that have to do with a server, and what all commands end with."""

MET, FAILED, BAD_INPUT, MISSED = 0, 1, 2, 3
"""Exit statuses."""
