"""Maps over images, so that a person can look at them.

:func:`visualize_maps` draws signed maps over any pictures, :func:`visualize_neighbors` the bank
entries whose weights were borrowed; both follow the habits of ``captum.attr.visualization``.
:func:`heatmap`, :func:`overlay` and :func:`grid` give plain arrays of the part above zero.
"""

from captum_embed.visualization.heatmaps import grid, heatmap, overlay, upsampled
from captum_embed.visualization.neighbors import visualize_neighbors
from captum_embed.visualization.pictures import Normalization, Picture, picture
from captum_embed.visualization.signed_maps import Sign, signed_overlay, visualize_maps

__all__ = [
    "Normalization",
    "Picture",
    "Sign",
    "grid",
    "heatmap",
    "overlay",
    "picture",
    "signed_overlay",
    "upsampled",
    "visualize_maps",
    "visualize_neighbors",
]
