"""LightningModules, one per kind of task: loss, metric, optimiser, predictions."""
