"""Evaluation: measurements of a trained network, their cache, and results that are printed and logged."""
