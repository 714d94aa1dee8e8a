"""Many results together: as fronts, plots, charts and the paper's table."""
