"""Many results: gathered, as fronts, as plots and charts, as the paper's table."""
