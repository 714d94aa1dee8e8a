"""Partial sums over a neuron's terms, and fast passes over a layer's outputs."""
