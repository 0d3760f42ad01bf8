"""Scores of changed images: all that methods without gradients look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum._utils.common import (
    ExpansionTypes,
    _expand_additional_forward_args,
    _format_additional_forward_args,
    _run_forward,
)
from torch import Tensor

from captum_embed.errors import InputError


def checked_images(inputs: Any) -> Tensor:
    """Raises InputError unless the inputs are one batch of images (N, C, H, W)."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or 0 in inputs.shape:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(f"inputs are {given}; expected one batch of images (N, C, H, W)")
    return inputs


def require_positive(**numbers: int) -> None:
    """Raises InputError where one of the named numbers is below one."""
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{name} is {number}; expected 1 or more")


def checked_call(
    inputs: Any, additional_forward_args: Any, **numbers: int
) -> tuple[Tensor, tuple[Any, ...]]:
    """One batch of images, and the further arguments with a row for each of them.

    Raises:
        InputError: The inputs are something else, or one of the named numbers is below one.
    """
    images = checked_images(inputs)
    require_positive(**numbers)
    return images, per_example(additional_forward_args, len(images))


def per_example(arguments: Any, examples: int) -> tuple[Any, ...]:
    """Further arguments of a forward function, with a row for each example.

    Args:
        arguments: As in ``additional_forward_args``.
        examples: Number of examples N.

    Returns:
        The arguments as a tuple. A tensor (1, D), or with more dimensions, is one for all
        examples and becomes (N, D): Captum copies arguments example by example.
    """
    formatted = _format_additional_forward_args(arguments) or ()
    return tuple(
        each.expand(examples, *each.shape[1:])
        if isinstance(each, Tensor) and each.dim() > 1 and each.shape[0] == 1
        else each
        for each in formatted
    )


def of_example(arguments: tuple[Any, ...], n: int, examples: int) -> tuple[Any, ...]:
    """Those arguments for example ``n`` of several: its row of each tensor that has a row each."""
    return tuple(
        each[n : n + 1]
        if isinstance(each, Tensor) and each.dim() > 0 and len(each) == examples
        else each
        for each in arguments
    )


def scores(
    forward_func: Callable[..., Any], images: Tensor, arguments: tuple[Any, ...] = ()
) -> Tensor:
    """The score of each image, without gradients.

    Args:
        forward_func: Returns one value per image.
        images: Shape (N, ...).
        arguments: Its further arguments.

    Returns:
        Shape (N,).

    Raises:
        InputError: It returned something else.
    """
    with torch.no_grad():
        output = _run_forward(forward_func, images, None, arguments or None)
    if not isinstance(output, Tensor) or output.shape not in ((len(images),), (len(images), 1)):
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
        raise InputError(
            f"the forward function returned {given} for {len(images)} images; expected one value "
            "per image, (N,), such as the similarity to references"
        )
    return output.flatten()


def masked_scores(
    forward_func: Callable[..., Any],
    images: Tensor,
    masks: Tensor,
    arguments: tuple[Any, ...] = (),
) -> Tensor:
    """The score of each image under each mask, all in one forward pass.

    Args:
        forward_func: Returns one value per image.
        images: Shape (N, C, H, W).
        masks: What each pixel is multiplied by, (N or 1, M, H, W).
        arguments: Its further arguments, from :func:`per_example`.

    Returns:
        Shape (N, M).

    Example::

        >>> import torch
        >>> images, masks = torch.ones(2, 3, 4, 4), torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1)
        >>> masked_scores(lambda images: images.mean((1, 2, 3)), images, masks)
        tensor([[1.0000, 0.5000],
                [1.0000, 0.5000]])
    """
    masked = images[:, None] * masks[:, :, None].to(images)
    copied = _expand_additional_forward_args(
        arguments, masks.shape[1], ExpansionTypes.repeat_interleave
    )
    return scores(forward_func, masked.flatten(0, 1), copied).reshape(masked.shape[:2])
