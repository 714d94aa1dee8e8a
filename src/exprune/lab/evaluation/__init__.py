"""One measurement: a trained network densely and pruned, with intervals, as a result that is printed and logged."""
