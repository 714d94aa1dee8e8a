"""Selection of settings: for a target, with a guarantee, or one tau per site by search."""
