"""A run: preparation, every method on every image, and the folder of it."""
