"""What torch calls are: which are linear layers, which a ReLU, what the others do to their tensors, what they cost."""
