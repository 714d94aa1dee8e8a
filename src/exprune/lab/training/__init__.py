"""Training, static pruning, and checkpoints."""
