"""Shared parts of all data sets: their splits, and the locations of pretrained networks."""
