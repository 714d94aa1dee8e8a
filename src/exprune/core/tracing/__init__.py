"""Tracing a model's passes: following pre-activations from their layers to their activations, and telling observers."""
