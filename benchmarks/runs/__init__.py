"""Runs: preparation, evaluation of every method on every image, and the folder."""
