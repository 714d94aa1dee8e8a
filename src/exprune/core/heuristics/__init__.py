"""When to stop a neuron: the paper's tests, and those that are calibrated on the network."""
