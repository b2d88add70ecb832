"""Pre-training objectives: one file a method, over the shared skeletons `_joint` and `_masked`."""
