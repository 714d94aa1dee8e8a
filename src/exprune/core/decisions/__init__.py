"""What is known after a stage, where neurons stop, and how that is solved before the run."""
