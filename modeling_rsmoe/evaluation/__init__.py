"""Scores of what a model writes: ``captions``."""
