"""Sums over some of a neuron's terms, and fast passes over a layer's outputs."""
