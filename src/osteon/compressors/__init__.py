"""Compressions of a model to a budget: one file a method."""
