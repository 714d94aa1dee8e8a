"""Tracing of a model's passes: pre-activations are followed to their activations, and observers are notified."""
