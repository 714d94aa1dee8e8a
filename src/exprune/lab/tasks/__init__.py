"""What all tasks share: what each must have, its optimiser, its metric's intervals and tests."""
