"""Layouts of a layer's output: where its channels are, and which of its tokens lie where.

Convolutions put channels first, (N, C, H, W); Swin's blocks last, (N, H, W, C); a vision
transformer puts out tokens (N, T, C), some of which (class token, registers) lie nowhere in the
image. Grad-CAM is defined for channels first, so the others are brought into that shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import layer_name

Layout = Literal["channels_first", "channels_last", "tokens"]

_SHAPES = {
    "channels_first": "(N, C, ...)",
    "channels_last": "(N, ..., C)",
    "tokens": "(N, T, C)",
}
# Class token and eight registers: more are not known.
_MOST_PREFIX_TOKENS = 9


def checked_layout(
    layout: Any, prefix_tokens: int | None = None, grid: tuple[int, int] | None = None
) -> Layout:
    """The layout, refused unless the three settings are valid together.

    Args:
        layout: ``"channels_first"``, ``"channels_last"`` or ``"tokens"``.
        prefix_tokens: Number of leading tokens without a place in the image; None: inferred.
        grid: Rows and columns of the others; None: inferred.

    Returns:
        The layout.

    Raises:
        InputError: They are not.
    """
    if layout not in _SHAPES:
        raise InputError(f"layout is {layout!r}; expected one of {sorted(_SHAPES)}")
    if layout != "tokens" and not (prefix_tokens is None and grid is None):
        raise InputError(
            f"prefix_tokens and grid describe tokens, and layout is {layout!r}; leave them out, or "
            "pass layout='tokens'"
        )
    if prefix_tokens is not None and not (_is_count(prefix_tokens) and prefix_tokens >= 0):
        raise InputError(f"prefix_tokens is {prefix_tokens!r}; expected 0, 1, 2, ... or None")
    if grid is not None and not (
        isinstance(grid, (tuple, list))
        and len(grid) == 2
        and all(_is_count(size) and size > 0 for size in grid)
    ):
        raise InputError(
            f"grid is {grid!r}; expected (rows, columns) of the tokens, each at least 1, or None"
        )
    return layout


@dataclass(frozen=True)
class LayerLayout:
    """The layout of a layer as it is stated: the three settings that belong together.

    Args:
        layout: ``"channels_first"``, ``"channels_last"`` or ``"tokens"``.
        prefix_tokens: Leading tokens without a place in the image; None: inferred.
        grid: Rows and columns of the others; None: inferred.

    Raises:
        InputError: They are not valid together.

    Example::

        >>> import torch
        >>> layout = LayerLayout("tokens", prefix_tokens=1)
        >>> tokens, image = torch.rand(2, 17, 64), torch.rand(2, 3, 32, 32)
        >>> places = layout.channels_first(tokens, image)
        >>> places.shape
        torch.Size([2, 64, 4, 4])
        >>> torch.equal(layout.put_back(places, tokens), tokens)
        True
    """

    layout: Layout = "channels_first"
    prefix_tokens: int | None = None
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        checked_layout(self.layout, self.prefix_tokens, self.grid)

    def channels_first(self, tensor: Tensor, image: Tensor) -> Tensor:
        """A layer's output for the images ``image`` (N, ...) as (N, C, ...)."""
        return channels_first(
            tensor,
            self.layout,
            prefix_tokens=self.prefix_tokens,
            grid=self.grid,
            image_size=tuple(image.shape[2:]) if image.dim() == 4 else None,
        )

    def put_back(self, places: Tensor, output: Tensor) -> Tensor:
        """A layer's output with other places (N, C, ...), and the prefix tokens as they are.

        Rows of ``output`` that are missing are those of its first one.
        """
        if self.layout == "channels_first" or output.dim() < 3:
            return places
        if self.layout == "channels_last":
            return places.movedim(1, -1)
        patches = places.flatten(2).transpose(1, 2)
        prefix = output[:, : output.shape[1] - patches.shape[1]]
        return torch.cat([prefix.expand(len(patches), -1, -1), patches], dim=1)


CHANNELS_FIRST = LayerLayout()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def channels_first(
    tensor: Tensor,
    layout: Layout,
    *,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    image_size: Sequence[int] | None = None,
) -> Tensor:
    """A layer's output with channels in dimension 1 and places behind it; differentiable.

    Args:
        tensor: The output, (N, C, ...), (N, ..., C) or (N, T, C) by ``layout``; (N, C) has no
            places and is returned as it is.
        layout: ``"channels_first"``, ``"channels_last"`` or ``"tokens"``.
        prefix_tokens: Leading tokens without a place, which are left out. None: as many (0 to
            9, without the image's size 0 or 1) as leave a grid that fits, if only one does.
        grid: Rows and columns of the tokens. None: the grid of equal patches of the image, if
            its size is given and only one grid fits; otherwise a square.
        image_size: Height and width of the image, where the input is one.

    Returns:
        Shape (N, C, ...): for tokens (N, C, rows, columns).

    Raises:
        LayerError: The tokens fit no grid, or several.

    Example::

        >>> import torch
        >>> tokens = torch.rand(2, 197, 768)
        >>> channels_first(tokens, "tokens", image_size=(224, 224)).shape
        torch.Size([2, 768, 14, 14])
        >>> channels_first(tokens, "tokens", prefix_tokens=1, grid=(7, 28)).shape
        torch.Size([2, 768, 7, 28])
        >>> channels_first(torch.rand(2, 7, 9, 64), "channels_last").shape
        torch.Size([2, 64, 7, 9])
    """
    if layout == "channels_first" or tensor.dim() < 3:
        return tensor
    if layout == "channels_last":
        return tensor.movedim(-1, 1)
    if tensor.dim() != 3:
        raise LayerError(
            f"the layer's output has shape {tuple(tensor.shape)}, and layout='tokens' means "
            f"{_SHAPES['tokens']}; pass another layout, or choose another layer"
        )
    rows, columns = token_grid(tensor.shape[1], prefix_tokens, grid, image_size)
    places = tensor[:, tensor.shape[1] - rows * columns :]
    return places.transpose(1, 2).unflatten(2, (rows, columns))


def token_grid(
    tokens: int,
    prefix_tokens: int | None = None,
    grid: tuple[int, int] | None = None,
    image_size: Sequence[int] | None = None,
) -> tuple[int, int]:
    """Rows and columns of the tokens that have a place; arguments as :func:`channels_first`.

    Raises:
        LayerError: No grid fits, or several.

    Example::

        >>> token_grid(1 + 8 * 16, image_size=(128, 256))
        (8, 16)
    """
    if grid is not None:
        rest = tokens - grid[0] * grid[1]
        if rest < 0 or rest != (rest if prefix_tokens is None else prefix_tokens):
            prefix = "" if prefix_tokens is None else f" and {prefix_tokens} prefix tokens"
            raise LayerError(
                f"the layer puts out {tokens} tokens, and grid={tuple(grid)}{prefix} make "
                f"{grid[0] * grid[1] + (prefix_tokens or 0)}; correct grid or prefix_tokens"
            )
        return grid[0], grid[1]
    if prefix_tokens is not None:
        grids = _grids(tokens - prefix_tokens, image_size, exact=False)
    else:
        # Of squares alone, a class token is all that can be told apart from none.
        most = 1 if image_size is None else _MOST_PREFIX_TOKENS
        # One cell shows nothing, so a grid of one is no evidence for its prefix tokens.
        grids = {
            one
            for prefix in range(most + 1)
            for one in _grids(tokens - prefix, image_size, exact=True)
            if one[0] * one[1] > 1
        }
    if len(grids) == 1:
        return grids.pop()
    prefix = "an unknown number of" if prefix_tokens is None else str(prefix_tokens)
    image = "" if image_size is None else f" of an image of {tuple(image_size)} pixels"
    fits = f"fit several grids {sorted(grids)}" if grids else "fit no grid"
    raise LayerError(
        f"{tokens} tokens{image}, {prefix} of them prefix tokens, {fits}; pass "
        "prefix_tokens=... (1 for a class token alone) and grid=(rows, columns)"
    )


def _grids(count: int, image_size: Sequence[int] | None, *, exact: bool) -> set[tuple[int, int]]:
    """Grids of ``count`` tokens: of equal square patches of the image, or else a square."""
    if count < 1:
        return set()
    root = isqrt(count)
    square = {(root, root)} if root * root == count else set()
    if image_size is None:
        return square
    height, width = image_size
    if height == width and not exact:
        return square
    return {
        (height // patch, width // patch)
        for patch in range(1, min(height, width) + 1)
        if (height // patch) * (width // patch) == count
        and not (exact and (height % patch or width % patch))
    }


def require_layout(
    tensor: Tensor,
    layout: Layout,
    layer: nn.Module,
    image: Tensor,
    named: str = "",
) -> None:
    """Refuses a layer whose layout is not the one stated, as far as can be told.

    The modules in the layer tell by their widths which dimension holds the channels. Where
    they do not, an image as input does: rows and columns keep its proportions.

    Args:
        tensor: What the layer put out, or what went into it.
        layout: The layout stated.
        layer: The layer.
        image: The input (N, ...) that it was computed from.
        named: Name of the layer, for the message.

    Raises:
        LayerError: The layout is another, or a layout must be stated.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> norm = nn.LayerNorm(64)
        >>> image = torch.rand(2, 3, 32, 32)
        >>> require_layout(torch.rand(2, 8, 8, 64), "channels_last", norm, image)
        >>> require_layout(torch.rand(2, 8, 8, 64), "channels_first", norm, image)
        Traceback (most recent call last):
        captum_embed.errors.LayerError: the layer has shape (2, 8, 8, 64), which does not ...
    """
    shape = tuple(tensor.shape)
    if tensor.dim() < 3:
        return
    if layout == "tokens" and (
        tensor.dim() != 3 or (shape[1] == len(image) != shape[0] and shape[1] > 1)
    ):
        raise _refused(shape, layout, named, None)
    last = _channels_are_last(shape, layer, tuple(image.shape))
    of_images = any(
        isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in layer.modules()
    )
    if tensor.dim() == image.dim() == 3 and of_images:
        raise LayerError(
            f"the layer{named} has shape {shape} for an input of shape {tuple(image.shape)}; is "
            "that one image? expected (N, C, H, W): pass image[None]"
        )
    if tensor.dim() == 3 and image.dim() == 4 and layout != "tokens" and last is not False:
        raise _refused(shape, layout, named, "tokens")
    if last is not None and last != (layout != "channels_first"):
        likely = "channels_first" if not last else "tokens" if len(shape) == 3 else "channels_last"
        raise _refused(shape, layout, named, likely)


def require_gradient_of_places(
    gradients: Sequence[Tensor],
    of_places: Sequence[Tensor],
    layer: nn.Module,
    forward_func: Any,
) -> None:
    """Refuses tokens of which only the prefix is read behind the layer: their map would be zero.

    Args:
        gradients: Gradients of all tokens, (N, T, C), for each tensor of the layer.
        of_places: Those of the tokens that have a place, from :func:`channels_first`.
        layer: The layer.
        forward_func: The forward function, in which neighbours of the layer are looked up.

    Raises:
        LayerError: They are; it names the layer to take.
    """
    for whole, places in zip(gradients, of_places, strict=True):
        if bool(whole.any()) and not bool(places.any()):
            root = getattr(forward_func, "module", forward_func)
            name = layer_name(root, layer)
            raise LayerError(
                f"behind the layer{f' {name!r}' if name else ''} only prefix tokens are read, so "
                f"no patch has a gradient and the map is zero; {_layer_to_take(root, layer, name)}"
            )


def _layer_to_take(root: Any, layer: nn.Module, name: str | None) -> str:
    advice = "take the block before, or the norm in front of this one's attention"
    if not name:
        return advice
    above, _, own = name.rpartition(".")
    siblings = list(dict(root.get_submodule(above).named_children()))
    place = siblings.index(own)
    named = [".".join(filter(None, (above, siblings[place - 1])))] if place else []
    norms = [n for n, m in layer.named_modules() if n and "Norm" in type(m).__name__]
    named += [f"{name}.{norm}" for norm in norms[:1]]
    return f"{advice}: {' or '.join(map(repr, named))}" if named else advice


def _refused(shape: tuple[int, ...], layout: Layout, named: str, likely: str | None) -> LayerError:
    message = f"the layer{named} has shape {shape}, which does not look like {layout}"
    if likely is None:
        return LayerError(
            f"{message}, {_SHAPES[layout]}; choose another layer, or a layout of "
            f"{sorted(_SHAPES)} that it has"
        )
    hint = " with prefix_tokens=1 for a class token" if likely == "tokens" else ""
    return LayerError(
        f"{message}, {_SHAPES[layout]}, but like {_SHAPES[likely]}; pass layout='{likely}'{hint}, "
        "or choose another layer"
    )


def _channels_are_last(
    shape: tuple[int, ...], layer: nn.Module, image: tuple[int, ...]
) -> bool | None:
    """Whether the channels are in the last dimension rather than in dimension 1; None: unknown."""
    first_kind, last_kind, others = _widths(layer)
    widths = first_kind | last_kind | others
    if (shape[1] in widths) != (shape[-1] in widths):
        return shape[-1] in widths
    if (shape[1] in first_kind) != (shape[-1] in last_kind):
        return shape[-1] in last_kind
    if len(shape) == len(image) == 4:
        first = _keeps_proportions(shape[2:], image[2:])
        if first != _keeps_proportions(shape[1:3], image[2:]):
            return not first
    return None


def _widths(layer: nn.Module) -> tuple[set[int], set[int], set[int]]:
    """Channels of the modules in a layer: which put them first, which last, and others."""
    first: set[int] = set()
    last: set[int] = set()
    others: set[int] = set()
    for module in layer.modules():
        names: tuple[str, ...] = ("in_channels", "out_channels", "num_features", "num_channels")
        if any(isinstance(getattr(module, name, None), int) for name in names[:2]) or isinstance(
            module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)
        ):
            kind = first
        elif isinstance(module, nn.Linear):
            kind, names = last, ("in_features", "out_features")
        elif isinstance(module, nn.MultiheadAttention):
            kind, names = last, ("embed_dim",)
        elif isinstance(getattr(module, "normalized_shape", None), tuple):
            # Subclasses (LayerNorm2d) may put the channels first.
            shape = module.normalized_shape
            if isinstance(shape, tuple) and len(shape) == 1:
                (last if type(module) is nn.LayerNorm else others).add(shape[0])
            continue
        else:
            continue
        widths = (getattr(module, name, None) for name in names)
        kind.update(width for width in widths if isinstance(width, int))
    return first, last, others


def _keeps_proportions(size: Sequence[int], image: Sequence[int]) -> bool:
    """Whether rows and columns are the image's, reduced alike up to rounding and padding."""
    if size[0] > image[0] or size[1] > image[1]:
        return False
    return abs(size[0] * image[1] - size[1] * image[0]) <= 2 * max(image)
