"""Running a model pruned, without running it faster."""
