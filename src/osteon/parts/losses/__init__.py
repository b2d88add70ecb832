"""Loss functions that several methods share, as pure functions on tensors."""
