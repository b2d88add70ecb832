"""Merges and continual-learning rules: one file a method."""
