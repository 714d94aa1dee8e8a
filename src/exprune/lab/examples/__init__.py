"""What serves one kind of example: its data, its networks, its task and the tricks of its trainings."""
