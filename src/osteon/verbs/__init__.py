"""The verbs: one file each, its whole story from top to bottom."""
