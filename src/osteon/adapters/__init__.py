"""Adaptations of a backbone to a task: one file a method."""
