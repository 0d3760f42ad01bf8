"""Embedding networks by name, and their checkpoints."""
