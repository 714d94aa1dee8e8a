"""Whether members of a group are exchangeable, and what a test that takes them for it does."""
