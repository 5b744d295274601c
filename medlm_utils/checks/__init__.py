"""Checkers for the exercises: one file a chapter, and what they share in `core`."""
