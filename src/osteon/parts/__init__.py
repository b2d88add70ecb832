"""What methods share: heads, companions, decoders, targets, losses, norms, and the types that pass through the doors."""
