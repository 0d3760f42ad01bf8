"""Grad-CAM for embedding networks, as a Captum attribution."""
