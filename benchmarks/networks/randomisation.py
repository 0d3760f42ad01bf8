"""Networks re-initialised from the head downwards, and how alike two maps are.

For the sanity check of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018: a map
that stays the same when the network's parameters are replaced by random ones does not explain
the network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.core.seeding import seed_of
from captum_embed.errors import InputError

STAGES = ("head", "last block", "all")
# Side of the windows of SSIM, as scikit-image has it.
WINDOW = 7


def parameter_units(network: nn.Module) -> list[str]:
    """What of a network is re-initialised together, in the order of definition.

    Modules with parameters of their own, grouped by their names up to the first number: the
    blocks of the usual networks (``features.blocks.15``, ``layer4.2``).

    Example:
        >>> parameter_units(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)))
        ['0', '2']
    """
    names = [name for name, module in network.named_modules() if _own_parameters(module)]
    return list(dict.fromkeys(_unit(name) for name in names))


def cascade(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The units that are random at each stage; each stage holds those before it.

    - ``"head"``: the last unit, where it is a single linear layer;
    - ``"last block"``: also down to the last unit with several layers of weights, or with any,
      where no unit has several;
    - ``"all"``: every unit.

    A network without a head has no such stage, and one without anything below its last block
    only ``"all"``.

    Raises:
        InputError: the network has no parameters.

    Example:
        >>> cascade(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)))
        {'head': ('2',), 'last block': ('1', '2'), 'all': ('0', '1', '2')}
    """
    units = parameter_units(network)
    if not units:
        raise InputError(f"{type(network).__name__} has no parameters to re-initialise")
    layers = {unit: _weight_layers(network, unit) for unit in units}
    last = layers[units[-1]]
    below = units[:-1] if len(last) == 1 and isinstance(last[0], nn.Linear) else units
    stages = {"head": tuple(units[len(below) :])}
    for least in (2, 1):
        large = [index for index, unit in enumerate(below) if len(layers[unit]) >= least]
        if large:
            stages["last block"] = tuple(units[large[-1] :])
            break
    stages["all"] = tuple(units)
    chosen: dict[str, tuple[str, ...]] = {}
    for stage in STAGES:
        random = stages.get(stage, ())
        if random and (stage == "all" or random != stages["all"]):
            chosen[stage] = random
    return chosen


def randomised(
    network: nn.Module, units: Sequence[str], images: Sequence[Tensor], *, seed: int = 0
) -> nn.Module:
    """A copy of a network in which some units have never been trained.

    Weights are drawn as He et al. (ICCV 2015) draw them, from a normal distribution of variance
    2 / fan-in; biases are zero and normalisations the identity. The statistics of the batch
    normalisations among them are then those of the given images, without which the activations
    of a deep network would vanish or explode.

    Args:
        network (nn.Module): is left as it is.
        units (sequence of str): of `parameter_units`.
        images (sequence of Tensor): (N, 3, H, W), batches for the statistics; the network sees
            all of them at once where they are one batch.
        seed (int): of the weights; a unit draws the same at every stage.

    Returns:
        nn.Module: in evaluation mode.

    Raises:
        InputError: a unit that the network has not.
    """
    if unknown := sorted(set(units) - set(parameter_units(network))):
        raise InputError(f"the network has no {', '.join(unknown)}; see parameter_units")
    copied = copy.deepcopy(network).eval()
    norms = []
    for name, module in copied.named_modules():
        if _own_parameters(module) and _unit(name) in units:
            _reset(module, name, seed)
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                norms.append(module)
    _estimate_statistics(copied, norms, images)
    return copied


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _unit(name: str) -> str:
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    return ".".join(parts[: numbered + 1])


def _weight_layers(network: nn.Module, unit: str) -> list[nn.Module]:
    return [
        module
        for name, module in network.named_modules()
        if _unit(name) == unit and any(p.ndim > 1 for p in _own_parameters(module))
    ]


@torch.no_grad()
def _reset(module: nn.Module, name: str, seed: int) -> None:
    # From the name as well, so that a unit does not depend on what else is drawn.
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (2 / fan_in) ** 0.5)
        else:
            # Of one dimension, a weight is a normalisation's factor.
            parameter.fill_(1.0 if key == "weight" else 0.0)
    if isinstance(module, _BatchNorm):
        module.reset_running_stats()


@torch.no_grad()
def _estimate_statistics(
    network: nn.Module, norms: Sequence[_BatchNorm], images: Sequence[Tensor]
) -> None:
    if not norms or not images:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        # None: the plain mean over batches.
        norm.momentum = None
        norm.train()
    for batch in images:
        network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two maps' absolute values, pixel by pixel.

    Args:
        first: (H, W), signs do not matter.
        second: (H, W).

    Returns:
        In [-1, 1]; 0 where a map has the same value everywhere, which ranks nothing.

    Raises:
        InputError: see `similarity`.

    Example:
        >>> rank_correlation([[1, 2, 3]], [[-3, -2, -1]])
        -1.0
    """
    one, other = (values.ravel() for values in _checked(first, second))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


def similarity(first: ArrayLike, second: ArrayLike) -> float:
    """Structural similarity (SSIM) of two maps' absolute values, each divided by its maximum.

    Args:
        first: (H, W), 7 pixels or more on each side; signs do not matter.
        second: (H, W).

    Returns:
        In [-1, 1]; 1 for maps that differ by a factor.

    Raises:
        InputError: two shapes, fewer pixels, NaN or infinity.

    Source:
        Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to
        Structural Similarity", IEEE TIP 2004; scikit-image's with its uniform window of 7.

    Example:
        >>> similarity(np.eye(8), -2 * np.eye(8))
        1.0
    """
    pair = _checked(first, second)
    if min(pair[0].shape) < WINDOW:
        raise InputError(f"SSIM needs maps of {WINDOW} x {WINDOW} or more, got {pair[0].shape}")
    scaled = [one / np.max(one) if np.max(one) > 0 else one for one in pair]
    return float(structural_similarity(*scaled, win_size=WINDOW, data_range=1.0))


def _checked(
    first: ArrayLike, second: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = (np.abs(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if one.ndim != 2 or one.shape != other.shape or one.size == 0:
        raise InputError(f"expected two maps of one size (H, W), got {one.shape}, {other.shape}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError("maps are finite, got NaN or infinity")
    return one, other
