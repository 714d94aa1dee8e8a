"""Calibration: statistics of a trained network, measured before it is pruned."""
