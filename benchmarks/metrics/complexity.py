"""Complexity of a map, and its rise when parameters are random (eMPRT)."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import entropy

from captum_embed.errors import InputError

BINS = 100


def histogram_entropy(signed_map: ArrayLike, bins: int = BINS) -> float:
    """Entropy of the histogram of a map's values, in nats.

    Args:
        signed_map: of any shape, finite.
        bins: of equal width, from the lowest value to the highest.

    Returns:
        0 for a constant map, up to the logarithm of the number of bins.

    Raises:
        InputError: no values, NaN or infinity.

    Source:
        Hedstroem et al., "Sanity Checks Revisited: An Exploration to Repair the Model Parameter
        Randomisation Test", 2024, section 4.2; as `discrete_entropy` of Quantus has it.

    Example:
        >>> histogram_entropy([[0.0, 1.0]]) == float(np.log(2))
        True
    """
    values = np.asarray(signed_map)
    if values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"expected a finite map, got shape {values.shape}, or NaN in it")
    return float(entropy(np.histogram(values, bins=bins)[0]))


def complexity_rise(trained: ArrayLike, random: ArrayLike, bins: int = BINS) -> float:
    """eMPRT: how much more complex a map is when the network's parameters are random.

    Args:
        trained: map of the trained network.
        random: map of the same image by the network with all parameters random.
        bins: of the histograms.

    Returns:
        (entropy of the random network's map - entropy of the trained one's) / that of the trained
        one's. Above 0 where training makes maps simpler, as it should; 0 where the trained
        network's map is constant, and nothing can be said.

    Raises:
        InputError: see `histogram_entropy`.

    Example:
        >>> complexity_rise([[0.0, 1.0]], [[0.0, 1.0, 2.0, 3.0]])
        1.0
    """
    before, after = (histogram_entropy(one, bins) for one in (trained, random))
    return (after - before) / before if before > 0 else 0.0
