"""Which layers of a model are sites, and following their pre-activations to their activations."""
