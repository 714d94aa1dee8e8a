"""Discovery: find the layers of a model, and follow their pre-activations to their activations."""
