"""Classification of torch calls: linear layers, activations, effects on tensors, and costs."""
