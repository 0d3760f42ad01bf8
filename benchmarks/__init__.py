"""Benchmarks of attribution methods for embedding networks."""
