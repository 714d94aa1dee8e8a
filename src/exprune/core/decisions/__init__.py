"""Decisions: what is known after a stage, where neurons stop, and the solver that computes this before the run."""
