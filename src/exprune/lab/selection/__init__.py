"""Choosing: a heuristic's knob found for a target or a promise, one tau a site by search."""
