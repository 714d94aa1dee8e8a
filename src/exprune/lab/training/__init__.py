"""Weights found or made: training, static pruning, checkpoints."""
