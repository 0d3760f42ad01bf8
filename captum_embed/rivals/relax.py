"""RELAX: which pixels keep the similarity when random parts of the image are hidden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_embed.errors import InputError
from captum_embed.rivals.changed_images import checked_call, masked_scores


class RELAX(Attribution):
    r"""Mean score of an image under random masks, and its variance, at each pixel.

    With masks :math:`m` and the score :math:`s` of the masked image, importance and uncertainty
    of a pixel are the mean and the variance of the score, weighed by how much of the pixel each
    mask leaves:

    .. math::
        R = \frac{\sum_m m \, s(x \odot m)}{\sum_m m}, \qquad
        U = \frac{\sum_m m \, \big(s(x \odot m) - R\big)^2}{\sum_m m}

    *Masks.* A grid of Bernoulli variables is enlarged bilinearly by one cell more than the image
    needs, and cut out at a random place within a cell, as in RISE. The authors' code enlarges it
    to the image and moves it by up to 6 pixels instead.

    *Score.* The paper's is the cosine to the image's own embedding:
    ``LabelFree(encoder, RELAX, similarity="cosine")``. Any other score is explained in the same
    way, so as to compare methods on one similarity.

    *Cost.* One forward pass per mask and image, 3,000 by default; no gradients.

    Args:
        forward_func: Returns one score per image, (N,), such as its similarity to references.

    Source: Wickstrøm et al., RELAX: Representation Learning Explainability, IJCV 2023 (arXiv
        2112.10161), section 3, with the weighted running mean of their code
        (github.com/Wickstrom/RELAX), whose uncertainty is not divided by the sum of the masks.
        Petsiuk, Das, Saenko, RISE, BMVC 2018, section 3.2, for the masks.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import PairForward
        >>> from captum_embed.rivals import RELAX
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> relax = RELAX(PairForward(encoder, "similarity", distance="cosine"))
        >>> importance, uncertainty = relax.attribute(
        ...     torch.rand(2, 3, 8, 8), torch.rand(2, 4), num_masks=20, return_uncertainty=True
        ... )
        >>> importance.shape, uncertainty.shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2, 1, 8, 8]))
    """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        additional_forward_args: Any = None,
        *,
        num_masks: int = 3000,
        grid_size: int = 7,
        keep_probability: float = 0.5,
        seed: int = 0,
        perturbations_per_eval: int = 16,
        return_uncertainty: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Importance of each pixel, and on demand its uncertainty.

        Args:
            inputs: Images (N, C, H, W), hidden by zeros: the mean colour, where images are
                normalized.
            additional_forward_args: Further arguments of the forward function.
            num_masks: Number of masks, the same for all images.
            grid_size: Cells of the grid along each side.
            keep_probability: Probability of a cell to be left visible.
            seed: Of the masks, which are drawn by a generator of their own.
            perturbations_per_eval: Masks in one forward pass, of N times as many images. It
                changes the memory, not the result.
            return_uncertainty: Return the uncertainty too.

        Returns:
            Importance (N, 1, H, W); or importance and uncertainty, both (N, 1, H, W).

        Raises:
            InputError: An argument does not fit, or the score is not one value per image.

        Example::

            >>> import torch
            >>> from captum_embed.rivals import RELAX
            >>> left_half = lambda images: images[..., :4].mean((1, 2, 3))
            >>> map_ = RELAX(left_half).attribute(torch.ones(1, 1, 8, 8), num_masks=500)
            >>> bool(map_[..., :4].mean() > map_[..., 4:].mean())
            True
        """
        images, arguments = checked_call(
            inputs,
            additional_forward_args,
            num_masks=num_masks,
            grid_size=grid_size,
            perturbations_per_eval=perturbations_per_eval,
        )
        if not 0 < keep_probability < 1:
            raise InputError(
                f"keep_probability is {keep_probability}; expected a number between 0 and 1"
            )
        size = (images.shape[2], images.shape[3])
        coverage = torch.zeros(size[0] * size[1], dtype=torch.float64)
        sums, squares = (coverage.repeat(len(images), 1) for _ in range(2))
        for masks in _random_masks(
            num_masks, grid_size, keep_probability, size, seed, perturbations_per_eval
        ):
            measured = masked_scores(self.forward_func, images, masks[None], arguments)
            measured, flat = measured.cpu().double(), masks.flatten(1).double()
            coverage += flat.sum(0)
            sums += measured @ flat
            squares += measured.square() @ flat
        coverage = coverage.clamp(min=torch.finfo(torch.float64).tiny)
        mean = sums / coverage
        variance = (squares / coverage - mean.square()).clamp(min=0)
        importance, uncertainty = (
            each.reshape(len(images), 1, *size).to(images) for each in (mean, variance)
        )
        return (importance, uncertainty) if return_uncertainty else importance


def _random_masks(
    number: int, cells: int, keep: float, size: tuple[int, int], seed: int, at_once: int
) -> Iterator[Tensor]:
    """Masks (at most ``at_once``, H, W) on the CPU, the same on every device and batch size."""
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(number, 1, cells, cells, generator=generator) < keep).float()
    cell = [-(-side // cells) for side in size]
    shifts = torch.stack(
        [torch.randint(0, side, (number,), generator=generator) for side in cell], 1
    )
    enlarged = [(cells + 1) * side for side in cell]
    for grid, shift in zip(grids.split(at_once), shifts.split(at_once), strict=True):
        large = F.interpolate(grid, size=enlarged, mode="bilinear", align_corners=False)[:, 0]
        yield torch.stack(
            [
                one[y : y + size[0], x : x + size[1]]
                for one, (y, x) in zip(large, shift.tolist(), strict=True)
            ]
        )
