"""Choosing: a heuristic calibrated, its knob found for a target, one tau a site by search."""
