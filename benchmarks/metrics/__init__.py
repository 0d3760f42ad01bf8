"""Figures of merit for heatmaps: pure functions of arrays, without model or data set."""
