"""Which terms are evaluated before which test, what everything costs, and whether a run did what was planned."""
