"""Second-order attribution: which pairs of places in two images make up their similarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from captum.attr._utils.approximation_methods import approximation_parameters
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import run_layer
from captum_embed.rivals.activations import LayerMap, only_activation
from captum_embed.rivals.changed_images import checked_images, of_example, require_positive
from captum_embed.rivals.layer_replacement import run_with_replacement
from captum_embed.rivals.references import (
    Similarity,
    are_images,
    checked_embeddings,
    embed_unnormalized,
    encoder_of,
    require_similarity,
)

# Of the change that an integral must sum to.
_TOLERANCE = 0.05


class SecondOrderAttribution(LayerMap, GradientAttribution):
    r"""The similarity of two images over pairs of places, one in each, in any network.

    The Jacobian of the embedding :math:`f` by the layer's activations :math:`A` is averaged along
    the straight path from a baseline :math:`A_0` to them. Times the change of the activations,
    and summed over the channels, it says what each place adds to the embedding:

    .. math::
        v_p = \sum_c \Big( \int_0^1 \frac{\partial f}{\partial A_{cp}} \big(A_0 + t (A - A_0)\big)
        dt \Big) (A - A_0)_{cp}, \qquad R_{pq} = v_p \cdot v'_q

    All of :math:`R` sums to :math:`s(x, r) - s(x_0, r) - s(x, r_0) + s(x_0, r_0)`, the dot
    product less what the baselines have of it. The map of :math:`x` sums :math:`R` over the places
    of :math:`r`. The cosine divides by the lengths :math:`|f(x)| |f(r)|`, taken as constants.

    At the last layer before global average pooling and a linear head without bias it equals the
    activation decomposition (:class:`ActivationDecomposition`), which needs no gradients.

    *Cost.* The map takes ``n_steps`` passes forward and back through the part of the network
    above the layer, for each image; pairs take D times the backward passes, for both images.

    Args:
        forward_func: The encoder, images (N, ...) to embeddings (N, D), or a forward function
            that has one as ``encoder``. It keeps the examples of a batch apart.
        layer: Layer to explain: its output is (N, C, H, W), or as the layout says, once per
            forward pass. Prefix tokens stay as they are along the path.
        embedding_layer: Module whose output (N, D) is the embedding before the L2 norm, usually
            the linear head. Needed where the encoder normalizes: from activations of zero, a
            normalized embedding jumps at the first step, and no integral follows it.
        similarity: ``"cosine"``, or ``"dot"`` product.
        layout: ``layout``, ``prefix_tokens`` and ``grid``, as in ``EmbeddingLayerGradCam``.

    Raises:
        InputError: Unknown similarity.

    Source: Möller, Tilli, Vu, Padó, Explaining Caption-Image Interactions in CLIP Models with
        Second-Order Attributions, TMLR 2025 (arXiv 2408.14153), section 3, and their exCLIP
        (github.com/lucasmllr/exCLIP); Eberle et al., Building and Interpreting Deep Similarity
        Models (BiLRP), TPAMI 2022 (arXiv 2003.05051).

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed.rivals import SecondOrderAttribution
        >>> layer = nn.Conv2d(3, 4, 3)
        >>> encoder = nn.Sequential(
        ...     layer, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        ... )
        >>> second_order = SecondOrderAttribution(encoder, layer)
        >>> images, reference = torch.rand(2, 3, 8, 8), torch.rand(1, 3, 6, 9)
        >>> map_, pairs = second_order.attribute(images, reference, return_pairs=True)
        >>> map_.shape, pairs.shape
        (torch.Size([2, 1, 6, 6]), torch.Size([2, 6, 6, 4, 7]))
        >>> torch.allclose(pairs.sum((3, 4)), map_[:, 0], atol=1e-4)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        embedding_layer: nn.Module | None = None,
        *,
        similarity: Similarity = "cosine",
        **layout: Any,
    ) -> None:
        LayerMap.__init__(self, forward_func, layer, **layout)
        GradientAttribution.__init__(self, forward_func)
        require_similarity(similarity)
        self.similarity = similarity
        self.encoder = encoder_of(forward_func)
        self.embedding_layer = embedding_layer

    @log_usage()
    def attribute(
        self,
        inputs: Tensor,
        reference: Tensor | None = None,
        baselines: Tensor | None = None,
        additional_forward_args: Any = None,
        *,
        n_steps: int = 20,
        internal_batch_size: int = 32,
        relu_attributions: bool = False,
        return_pairs: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What each place of the inputs adds to the similarity, and on demand each pair of places.

        Args:
            inputs: Images (N, C, height, width).
            reference: What the images are compared with: images (N or 1, ...), of any size
                without ``baselines``; or, without ``return_pairs``, embeddings (N or 1, D), or
                (N or 1, M, D), whose M similarities are averaged. Default: each image itself.
            baselines: One image (1, ...) at whose activations both paths start. Default: at
                activations of zero.
            additional_forward_args: Further arguments of the encoder.
            n_steps: Points of the path (Gauss-Legendre) at which the Jacobian is taken.
            internal_batch_size: Points in one pass.
            relu_attributions: Set negative values of the map to zero.
            return_pairs: Return the pairs too.

        Returns:
            Map (N, 1, H, W), detached; or the map and the pairs (N, H, W, H', W').

        Raises:
            InputError: An argument does not fit, or the integral misses the change that it must
                sum to by more than 5%.
            LayerError: The layer ran not once, or is not finite, or the encoder does not keep
                examples apart.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed.rivals import SecondOrderAttribution
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> second_order = SecondOrderAttribution(encoder, encoder[0])
            >>> second_order.attribute(torch.rand(2, 3, 8, 8), torch.rand(1, 50, 4)).shape
            torch.Size([2, 1, 6, 6])
        """
        images = checked_images(inputs)
        require_positive(n_steps=n_steps, internal_batch_size=internal_batch_size)
        others = images if reference is None else reference
        with_images = are_images(others, images)
        if return_pairs and not with_images:
            raise InputError("pairs need the places of the reference; pass it as images")
        start = None if baselines is None else checked_images(baselines)
        if start is not None and len(start) != 1:
            raise InputError(f"baselines hold {len(start)} images; expected one, (1, ...)")
        arguments = _format_additional_forward_args(additional_forward_args) or ()
        paths = [
            _Path(self, images, start, n, arguments, n_steps, internal_batch_size)
            for n in range(len(images))
        ]
        other_paths = paths if others is images else []
        if with_images:
            other_paths = other_paths or [
                _Path(self, others, start, n, arguments, n_steps, internal_batch_size)
                for n in range(len(others))
            ]
            directions = torch.stack([self._scaled(path.change, path.end) for path in other_paths])
        else:
            directions = self._of_embeddings(others, paths)
        maps, pairs = [], []
        for n, path in enumerate(paths):
            direction = directions[n if len(directions) > 1 else 0]
            if return_pairs:
                vectors = self._scaled(path.vectors(None), path.end)
                other = other_paths[n if len(other_paths) > 1 else 0]
                others_vectors = self._scaled(other.vectors(None), other.end)
                pairs.append(torch.einsum("dhw,dxy->hwxy", vectors, others_vectors))
                maps.append(torch.einsum("dhw,d->hw", vectors, direction)[None])
            else:
                maps.append(self._scaled(path.vectors(direction), path.end))
        map_ = torch.stack(maps)
        map_ = F.relu(map_) if relu_attributions else map_
        return (map_, torch.stack(pairs)) if return_pairs else map_

    def _scaled(self, values: Tensor, embedding: Tensor) -> Tensor:
        return values if self.similarity == "dot" else values / embedding.norm().clamp(min=1e-12)

    def _of_embeddings(self, reference: Tensor, paths: list[_Path]) -> Tensor:
        """Mean over the references of the change of each, scaled, (N or 1, D)."""
        start = paths[0].start
        given = checked_embeddings(reference, torch.stack([path.end for path in paths]))
        if self.embedding_layer is not None and bool(start.any()):
            raise InputError(
                "the baseline's embedding is not zero, and the length that the reference had "
                "before the L2 norm is unknown; pass the reference as images"
            )
        if self.similarity == "cosine":
            return ((given - start) / given.norm(dim=2, keepdim=True).clamp(min=1e-12)).mean(1)
        return (given - start).mean(1)


class _Path:
    """The way of one image's activations from the baseline, and the embeddings along it."""

    def __init__(
        self,
        method: SecondOrderAttribution,
        images: Tensor,
        start: Tensor | None,
        n: int,
        arguments: tuple[Any, ...],
        n_steps: int,
        at_once: int,
    ) -> None:
        self.method, self.at_once = method, at_once
        self.image, self.arguments = images[n : n + 1], of_example(arguments, n, len(images))
        step_sizes, points = approximation_parameters("gausslegendre")
        # Captum's points lie in [0, 1], and its step sizes sum to one.
        self.step_sizes, self.points = step_sizes(n_steps), points(n_steps)
        with torch.no_grad():
            reached = self._activations(self.image)
            self.baseline = torch.zeros_like(reached) if start is None else self._activations(start)
            if self.baseline.shape != reached.shape:
                raise InputError(
                    f"the layer puts out {tuple(self.baseline.shape)} for the baseline and "
                    f"{tuple(reached.shape)} for image {n}; expected a baseline of its size"
                )
            self.difference = reached - self.baseline
            self.start, self.end = self._embed(torch.cat([self.baseline, reached]))
        self.change = self.end - self.start

    def _activations(self, image: Tensor) -> Tensor:
        layer = self.method.layer
        _, executions = run_layer(
            self.method.encoder, layer, (image,), None, self.arguments or None
        )
        return only_activation(executions, image, layer, self.method.layout)

    def _embed(self, activations: Tensor) -> Tensor:
        def embed(image: Tensor, *arguments: Any) -> Tensor:
            return embed_unnormalized(
                self.method.encoder, self.method.embedding_layer, image, arguments
            )

        return run_with_replacement(
            embed,
            self.method.layer,
            self.image,
            activations,
            self.arguments,
            layout=self.method.layout,
        )

    def vectors(self, direction: Tensor | None) -> Tensor:
        """What each place adds to the embedding, (D, H, W), or along one direction, (1, H, W)."""
        axes = torch.eye(len(self.end)).to(self.end) if direction is None else direction[None]
        total = self.difference.new_zeros(len(axes), *self.difference.shape[1:])
        points = torch.tensor(self.points).to(self.difference)
        weights = torch.tensor(self.step_sizes).to(self.difference)
        for at, weight in zip(points.split(self.at_once), weights.split(self.at_once), strict=True):
            with torch.enable_grad():
                along = self.baseline + at[:, None, None, None] * self.difference
                along.requires_grad_()
                values = weight @ self._embed(along) @ axes.T
                if not values.requires_grad:
                    raise LayerError(
                        "the embedding does not depend on the layer through a graph; does the "
                        "encoder run under torch.no_grad(), or detach?"
                    )
                for axis, value in enumerate(values):
                    (gradient,) = torch.autograd.grad(value, along, retain_graph=True)
                    total[axis] += gradient.sum(0)
        vectors = (total * self.difference).sum(1)
        self._require_complete(vectors.sum((1, 2)), axes @ self.change, axes)
        return vectors

    def _require_complete(self, shares: Tensor, expected: Tensor, axes: Tensor) -> None:
        error = (shares - expected).norm()
        size = self.change.norm() * axes.norm(dim=1).max()
        if not bool(error <= _TOLERANCE * size):
            raise InputError(
                f"the integral along the path misses the change of the embedding by "
                f"{float(error / size):.0%} of it, so the map would not sum to the similarity; "
                "where the encoder normalizes, pass embedding_layer=..., the module whose output "
                f"is normalized; otherwise raise n_steps, which is {len(self.points)}"
            )
