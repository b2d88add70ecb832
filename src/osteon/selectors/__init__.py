"""Selections of data: one file a method."""
