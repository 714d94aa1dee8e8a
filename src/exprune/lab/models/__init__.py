"""Networks of the paper, and what its accounting adds to their linear algebra."""
