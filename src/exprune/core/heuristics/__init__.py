"""Heuristics, which decide when to stop a neuron: the paper's tests, our calibrated tests, and other input rules."""
