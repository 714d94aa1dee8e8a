"""Examples by kind: data, networks, tasks and training methods."""
