"""Evaluators: one file an evaluation. Nothing here is ever fitted on test data."""
