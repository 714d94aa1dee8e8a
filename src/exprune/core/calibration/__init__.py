"""What is measured of a trained network before it is pruned: how partial sums foretell, and what matters."""
