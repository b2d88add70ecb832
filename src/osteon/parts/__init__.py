"""What methods share: heads, companions, decoders, targets, losses, norms, and the types that pass between rooms."""
