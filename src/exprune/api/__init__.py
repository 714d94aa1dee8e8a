"""The library's user-facing calls: inspect a model, calibrate it, measure the trade-off, and prune it."""
