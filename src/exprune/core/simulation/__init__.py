"""Run a model pruned. This is a simulation, which does not run faster."""
