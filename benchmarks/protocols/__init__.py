"""Evaluation protocols: how an image is shown to a network, and how its heatmap is scored."""
