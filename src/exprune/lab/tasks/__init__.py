"""Shared parts of all tasks: the base class, optimisers, and the intervals and tests of metrics."""
