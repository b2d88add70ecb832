"""Errors, cards, registry, options, run folder and provenance. Imports no torch."""
