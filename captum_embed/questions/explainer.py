"""The settings of a question, and the way from pictures to maps and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from captum_embed import recipes
from captum_embed.encoder_forward import Distance, EncoderForward, embedding_vectors
from captum_embed.encoders import require_evaluation_mode
from captum_embed.errors import InputError
from captum_embed.grad_cam import EmbeddingLayerGradCam
from captum_embed.layouts import Layout
from captum_embed.metric_forwards import SimilarityForward
from captum_embed.recipes import Recipe
from captum_embed.visualization import Normalization, Picture, picture

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's colours, with which most networks are trained."""

_SHORT_SIDE = 448
_AT_ONCE = 32


class Settings(TypedDict, total=False):
    """Keyword arguments that all questions take.

    Args:
        layer: The layer to explain, the module itself. Default: ``recipe.layer_of(encoder)``.
        recipe: Default: :data:`recipes.EXPLAIN`.
        preprocess: From a PIL image in RGB to the encoder's input, a tensor (C, H, W) or
            (1, C, H, W). Default: :func:`default_preprocess`. Tensors are taken as they are.
        normalization: Of the encoder's input, to draw it: (mean, std), or a function that undoes
            it, as in :func:`visualization.picture`. Default: that of the preprocess, where it is
            known. Only tensors that are not in [0, 1] need it.
        distance: As in :class:`SimilarityForward`. Default: ``"cosine"``.
        layout: As in :class:`EmbeddingLayerGradCam`. Default: the recipe's.
        prefix_tokens: As in :class:`EmbeddingLayerGradCam`.
        grid: As in :class:`EmbeddingLayerGradCam`.
    """

    layer: nn.Module | None
    recipe: Recipe
    preprocess: Callable[[Image.Image], Tensor] | None
    normalization: Normalization | None
    distance: Distance
    layout: Layout
    prefix_tokens: int
    grid: tuple[int, int]


def default_preprocess(image: Image.Image) -> Tensor:
    """A PIL image as most networks take it: ImageNet's normalisation, not too large.

    Larger images are scaled down, bilinearly and antialiased, until their shorter side has 448
    pixels; the proportions are kept. If a network was trained with other colours, or takes one
    size only, pass a ``preprocess`` of its own.

    Args:
        image: In mode RGB.

    Returns:
        Shape (3, H, W).

    Example::

        >>> from PIL import Image
        >>> default_preprocess(Image.new("RGB", (1000, 500))).shape
        torch.Size([3, 448, 896])
    """
    ratio = _SHORT_SIDE / min(image.size)
    if ratio < 1:
        width, height = (round(side * ratio) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in IMAGENET)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)
    return ((pixels - mean) / std).contiguous()


def _normalization_of(preprocess: Any) -> Normalization | None:
    """The mean and deviation that a preprocess of this module or of torchvision ends with."""
    if preprocess is default_preprocess:
        return IMAGENET
    for step in (preprocess, *reversed(getattr(preprocess, "transforms", ()))):
        if hasattr(step, "mean") and hasattr(step, "std"):
            return step.mean, step.std
    return None


class NegatedSimilarity(EncoderForward):
    """Minus a similarity, where it lowers a score."""

    def __init__(self, similarity: SimilarityForward) -> None:
        super().__init__(similarity.encoder, "loss")
        self.similarity = similarity

    def forward(self, images: Tensor) -> Tensor:
        """Minus the similarity, (N,)."""
        return -self.similarity(images)


class Explainer:
    """The settings of a question; from pictures to maps and scores."""

    def __init__(
        self,
        encoder: nn.Module,
        *,
        layer: nn.Module | None = None,
        recipe: Recipe = recipes.EXPLAIN,
        preprocess: Callable[[Image.Image], Tensor] | None = None,
        normalization: Normalization | None = None,
        distance: Distance = "cosine",
        layout: Layout | None = None,
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        if not isinstance(encoder, nn.Module):
            raise InputError(
                f"encoder is a {type(encoder).__name__}; expected a module that maps images to "
                "embeddings (N, D)"
            )
        require_evaluation_mode(encoder)
        self.encoder = encoder
        self.recipe = recipe
        self.layer = recipe.layer_of(encoder) if layer is None else layer
        self.preprocess = preprocess or default_preprocess
        self.normalization = normalization
        self.distance = distance
        self.layout: dict[str, Any] = {
            "layout": layout,
            "prefix_tokens": prefix_tokens,
            "grid": grid,
        }

    def prepared(self, image: Picture) -> Tensor:
        """One picture as the encoder takes it, (1, C, H, W), where the encoder is."""
        like = next(self.encoder.parameters(), torch.zeros(()))
        if isinstance(image, Tensor):
            tensor = image
        else:
            pixels = np.round(picture(image) * 255).astype(np.uint8)
            tensor = self.preprocess(Image.fromarray(pixels))
            if self.normalization is None:
                self.normalization = _normalization_of(self.preprocess)
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if not isinstance(tensor, Tensor) or not (
            tensor.dim() == 3 or (tensor.dim() == 4 and len(tensor) == 1)
        ):
            source = "the picture" if tensor is image else "preprocess returned"
            raise InputError(
                f"{source} {shape}; expected one image, a tensor (C, H, W) or (1, C, H, W)"
            )
        if not tensor.is_floating_point():
            raise InputError(
                f"the picture is a tensor of {tensor.dtype}; expected floats, normalised as the "
                "encoder takes them"
            )
        one = tensor[None] if tensor.dim() == 3 else tensor
        # A preprocess knows nothing of the encoder's precision; who gives a tensor does.
        return one.detach().to(like.device, one.dtype if tensor is image else like.dtype)

    def prepared_all(self, what: str, images: Any) -> list[Tensor]:
        """Pictures, or the rows of a batch, each as :meth:`prepared` gives it."""
        if isinstance(images, Tensor) and images.dim() == 4:
            return [self.prepared(one) for one in images.split(1)]
        if isinstance(images, (list, tuple)):
            return [self.prepared(one) for one in images]
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"{what} are {shape}; expected a list of pictures, or a batch (N, C, H, W)"
        )

    def references(self, what: str, given: Any) -> Tensor | None:
        """Embeddings (R, D) of pictures, or as given."""
        if given is None or (isinstance(given, Tensor) and given.dim() == 2):
            return given
        return self.embedded(self.prepared_all(what, given))

    def embedded(self, images: Sequence[Tensor]) -> Tensor:
        """Embeddings (R, D) of images (1, C, H, W), in their order; those of one size together."""
        embeddings: dict[int, Tensor] = {}
        with torch.no_grad():
            for shape in {image.shape for image in images}:
                places = [p for p, image in enumerate(images) if image.shape == shape]
                for start in range(0, len(places), _AT_ONCE):
                    some = places[start : start + _AT_ONCE]
                    batch = torch.cat([images[place] for place in some])
                    embeddings |= zip(some, embedding_vectors(self.encoder(batch)), strict=True)
        return torch.stack([embeddings[place] for place in range(len(images))])

    def similarity(self, references: Tensor, foils: Tensor | None = None) -> SimilarityForward:
        """The score: similarity to references less that to foils, embeddings (R, D)."""
        return SimilarityForward(self.encoder, references, foils, self.distance)

    def grad_cam(self, forward: EncoderForward, **bank: Any) -> EmbeddingLayerGradCam:
        """The attribution, with the recipe's settings."""
        return self.recipe.grad_cam(forward, self.layer, **bank, **self.layout)

    def map_of(self, forward: EncoderForward, image: Tensor) -> Tensor:
        """The signed map of one image."""
        return self.grad_cam(forward).attribute(image)

    def score_of(self, forward: EncoderForward, image: Tensor) -> float:
        """What the map of one image explains."""
        with torch.no_grad():
            return float(forward(image))
