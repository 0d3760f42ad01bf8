"""Grad-CAM for embedding networks: from a query to its map, in the order in which it happens.

Run the network and record the layer; take the grad-weights, from gradients or from the bank;
filter them; weigh the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import (
    _format_additional_forward_args,
)
from captum.attr import LayerAttribution
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.channel_filters import ChannelFilter
from captum_embed.errors import InputError, LayerError
from captum_embed.layer_executions import (
    LayerExecution,
    checked_inputs,
    layer_gradients,
    run_layer,
)
from captum_embed.layer_results import Maps, PerExecution, packed, split_batches
from captum_embed.map_functions import MapFunction, over_space, weighted_sum
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.compatibility import require_compatible, require_fit


class EmbeddingLayerGradCam(LayerAttribution, GradientAttribution):
    r"""Grad-CAM maps for networks that embed images and have no class score.

    The explained value :math:`y` is a metric loss, or anything else that ``forward_func``
    returns. With :math:`A` the output of ``layer`` for example :math:`n`,

    .. math::
        w[n, c] = \mathrm{mean}_{h,w}\; \partial y[n] / \partial A[n, c, h, w], \qquad
        \mathrm{map}[n] = \sum_c f(w)[n, c]\, A[n, c]

    where :math:`f` is ``channel_filter``. Without a ``weight_bank`` it is a drop-in for
    :class:`captum.attr.LayerGradCam`, and it also explains *every* execution of an encoder that
    is shared by the images of a tuple, of which Captum keeps only the last. With one, a query
    borrows the grad-weights of its nearest bank entries: one forward pass, no labels, no
    tuples, no backpropagation, no autograd graph.

    **Shared encoders.** Where the layer runs k times in one forward pass, or once on a batch k
    times as long as ``inputs``, the result is a tuple of k maps in the order of execution,
    which is the order of the inputs in all forward functions of this package.

    Args:
        forward_func: Forward function of the model or any modification of it: returns one value
            per example, (N,), or one scalar for the batch (an in-batch loss).
        layer: Layer to explain: its output is (N, C, H, W), or (N, C), or a tuple of these.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        weight_bank: Grad-weights of training images, from :func:`build_weight_bank`.
        embedding_func: With a bank: maps queries to embeddings (N, D), running the layer.
            Default: ``forward_func.encoder``.
        channel_filter: Maps grad-weights (N, C) to (N, C), see
            :mod:`captum_embed.channel_filters`. Default: identity.
        map_func: Maps filtered weights (N, C) and activations (N, C, H, W) to maps
            (N, 1, H, W), see :mod:`captum_embed.map_functions`. Default: the weighted sum.

    Raises:
        InputError: A bank is given, and no embedding function can be found.
        BankMismatchError: The bank was built for another layer.

    Source: Chen et al., Adapting Grad-CAM for Embedding Networks, WACV 2020, sections 3.2, 3.3;
        Selvaraju et al., Grad-CAM, ICCV 2017.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import EmbeddingLayerGradCam, TripletForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> grad_cam = EmbeddingLayerGradCam(TripletForward(encoder, margin=9.0), encoder[0])
        >>> anchor, positive, negative = torch.rand(3, 2, 3, 8, 8)
        >>> maps = grad_cam.attribute((anchor, positive, negative))
        >>> [tuple(one.shape) for one in maps]
        [(2, 1, 6, 6), (2, 1, 6, 6), (2, 1, 6, 6)]
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        weight_bank: WeightBank | None = None,
        embedding_func: Callable[..., Tensor] | None = None,
        channel_filter: ChannelFilter | None = None,
        map_func: MapFunction | None = None,
    ) -> None:
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)
        self.weight_bank = weight_bank
        self.embedding_func = embedding_func
        self.channel_filter = channel_filter
        self.map_func = map_func
        if weight_bank is not None:
            require_compatible(weight_bank, forward_func, self._embedding_func(), layer)

    @classmethod
    def recommended(
        cls, forward_func: Callable[..., Any], layer: nn.Module, *, weight_bank: WeightBank
    ) -> EmbeddingLayerGradCam:
        """The settings that localise best: :data:`captum_embed.recipes.RECOMMENDED`."""
        from captum_embed.recipes import RECOMMENDED

        return RECOMMENDED.grad_cam(forward_func, layer, weight_bank=weight_bank)

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        num_neighbors: int = 1,
    ) -> Maps:
        r"""Maps of the inputs.

        Args:
            inputs: Without a bank, the input(s) of ``forward_func``, dimension 0 counting
                examples. With a bank, query images (N, ...), or a tuple of such batches, each
                explained on its own.
            target: Index into the output of ``forward_func``, as in
                :class:`captum.attr.LayerGradCam`. Not used with a bank.
            additional_forward_args: Further arguments of ``forward_func`` (with a bank: of the
                embedding function), which are not explained.
            attribute_to_layer_input: Explain what goes into the layer instead of its output.
            relu_attributions: Set negative values of the map to zero.
            attr_dim_summation: Sum over channels. If False, the map keeps its C channels.
            grad_kwargs: Keyword arguments of ``torch.autograd.grad``. With
                ``create_graph=True`` the maps stay differentiable; otherwise they are detached.
            num_neighbors: With a bank: how many nearest entries are averaged.

        Returns:
            Map (N, 1, H, W), or (N, C, H, W) without summation; (N, 1) for layers of shape
            (N, C). A tuple of maps where the layer runs several times or on k times the batch
            (see the class), returns a tuple, or where ``inputs`` is a tuple of queries.

        Raises:
            InputError: An argument does not fit; among them a bank's arguments without one.
            LayerError: The layer never ran, or its activations are not finite.
            BankMismatchError: Embeddings or channels differ in number from the bank's.

        Example::

            >>> import torch
            >>> from captum.attr import LayerAttribution
            >>> from torch import nn
            >>> from captum_embed import EmbeddingLayerGradCam, TripletForward, WeightBank
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> bank = WeightBank(embeddings=torch.rand(10, 4), weights=torch.rand(10, 4))
            >>> forward = TripletForward(encoder)
            >>> grad_cam = EmbeddingLayerGradCam(forward, encoder[0], weight_bank=bank)
            >>> maps = grad_cam.attribute(torch.rand(2, 3, 8, 8), num_neighbors=3)
            >>> LayerAttribution.interpolate(maps, (8, 8), interpolate_mode="bilinear").shape
            torch.Size([2, 1, 8, 8])
        """
        if not attr_dim_summation and self.map_func is not None:
            raise InputError(
                "attr_dim_summation=False asks for one map per channel, and map_func makes one "
                "of all channels; leave one of them out"
            )

        def map_of(weights: Tensor, activations: Tensor) -> Tensor:
            filtered = self._filtered(weights)
            if not attr_dim_summation:
                weighed = over_space(filtered, activations) * activations
            else:
                weighed = (self.map_func or weighted_sum)(filtered, activations)
            return F.relu(weighed) if relu_attributions else weighed

        return self._each_query(
            inputs,
            map_of,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            grad_kwargs,
            num_neighbors,
        )

    def grad_weights(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        num_neighbors: int = 1,
    ) -> Maps:
        """Grad-weights of the inputs, before any channel filter.

        Args:
            inputs: As in :meth:`attribute`.
            target: As in :meth:`attribute`.
            additional_forward_args: As in :meth:`attribute`.
            attribute_to_layer_input: As in :meth:`attribute`.
            grad_kwargs: As in :meth:`attribute`.
            num_neighbors: As in :meth:`attribute`.

        Returns:
            Shape (N, C): the mean gradient of each channel, or with a bank the mean weights of
            the nearest entries. A tuple where :meth:`attribute` gives one.

        Raises:
            InputError: As in :meth:`attribute`.
            LayerError: As in :meth:`attribute`.
            BankMismatchError: As in :meth:`attribute`.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed import EmbeddingLayerGradCam, PairForward
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> grad_cam = EmbeddingLayerGradCam(PairForward(encoder, "distance"), encoder[0])
            >>> first, second = grad_cam.grad_weights(tuple(torch.rand(2, 5, 3, 8, 8)))
            >>> first.shape
            torch.Size([5, 4])
        """
        return self._each_query(
            inputs,
            lambda weights, activations: weights,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            grad_kwargs,
            num_neighbors,
        )

    def _each_query(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        result_of: Callable[[Tensor, Tensor], Tensor],
        target: Any,
        additional_forward_args: Any,
        attribute_to_layer_input: bool,
        grad_kwargs: dict[str, Any] | None,
        num_neighbors: int,
    ) -> Maps:
        queries = checked_inputs(inputs)
        arguments = _format_additional_forward_args(additional_forward_args)
        if self.weight_bank is None:
            if num_neighbors != 1:
                raise InputError(
                    f"num_neighbors is {num_neighbors}, which only means something with a weight "
                    "bank; pass weight_bank=..., or leave it out"
                )
            weights, activations = self._from_gradients(
                queries, target, arguments, attribute_to_layer_input, grad_kwargs
            )
            return packed(weights, activations, result_of)
        if target is not None or grad_kwargs is not None or attribute_to_layer_input:
            raise InputError(
                "target, grad_kwargs and attribute_to_layer_input belong to gradients, and with a "
                "weight bank none are taken (it holds the weights of the layer's output); leave "
                "them out, or build EmbeddingLayerGradCam without a bank"
            )
        results = tuple(
            packed(*self._from_bank(query, arguments, num_neighbors), result_of)
            for query in queries
        )
        return results if isinstance(inputs, tuple) else results[0]

    def _from_gradients(
        self,
        inputs: tuple[Tensor, ...],
        target: Any,
        arguments: Any,
        attribute_to_layer_input: bool,
        grad_kwargs: dict[str, Any] | None,
    ) -> tuple[PerExecution, PerExecution]:
        differentiable = bool(grad_kwargs and grad_kwargs.get("create_graph"))
        with torch.enable_grad():
            output, executions = run_layer(
                self.forward_func,
                self.layer,
                inputs,
                target,
                arguments,
                device_ids=self.device_ids,
                attribute_to_layer_input=attribute_to_layer_input,
                cut=not differentiable,
            )
            gradients = layer_gradients(output, executions, grad_kwargs)
        activations = _activations(executions, detach=not differentiable)
        weights = [
            [gradient.flatten(2).mean(2) if gradient.dim() > 2 else gradient for gradient in each]
            for each in gradients
        ]
        self._require_finite("grad-weights", weights)
        self._require_finite("activations", activations)
        batch = inputs[0].shape[0]
        return split_batches(weights, batch), split_batches(activations, batch)

    def _from_bank(
        self, query: Tensor, arguments: Any, num_neighbors: int
    ) -> tuple[PerExecution, PerExecution]:
        assert self.weight_bank is not None
        with torch.no_grad():
            embeddings, executions = run_layer(
                self._embedding_func(),
                self.layer,
                (query,),
                None,
                arguments,
                device_ids=self.device_ids,
            )
            activations = _activations(executions, detach=True)
            self._require_finite("activations", activations)
            for each in activations:
                channels = sum(tensor.shape[1] for tensor in each)
                require_fit(self.weight_bank, embeddings, channels, query.shape[0])
            transferred = self.weight_bank.transfer(embeddings, num_neighbors)
            weights = [
                list(transferred.to(each[0]).split([tensor.shape[1] for tensor in each], dim=1))
                for each in split_batches(activations, query.shape[0])
            ]
        return weights, split_batches(activations, query.shape[0])

    def _embedding_func(self) -> Callable[..., Tensor]:
        if self.embedding_func is not None:
            return self.embedding_func
        wrapped = getattr(self.forward_func, "module", self.forward_func)
        encoder = getattr(self.forward_func, "encoder", getattr(wrapped, "encoder", None))
        if encoder is None:
            raise InputError(
                "with a weight bank the query must be embedded, and forward_func "
                f"({type(self.forward_func).__name__}) has no `encoder`; pass "
                "embedding_func=..., which maps images to embeddings (N, D)"
            )
        return encoder

    def _filtered(self, weights: Tensor) -> Tensor:
        if self.channel_filter is None:
            return weights
        filtered = self.channel_filter(weights)
        if not isinstance(filtered, Tensor) or filtered.shape != weights.shape:
            given = tuple(filtered.shape) if isinstance(filtered, Tensor) else type(filtered)
            raise InputError(
                f"channel_filter returned {given} for grad-weights of shape "
                f"{tuple(weights.shape)}; expected the same shape"
            )
        return filtered

    def _require_finite(self, what: str, tensors: PerExecution) -> None:
        if all(bool(torch.isfinite(tensor).all()) for each in tensors for tensor in each):
            return
        raise LayerError(
            f"the {what} of the layer ({type(self.layer).__name__}) hold NaN or infinite values; "
            "look for them in the inputs, the network's parameters, and the loss"
        )


def _activations(executions: Sequence[LayerExecution], *, detach: bool) -> PerExecution:
    return [[t.detach() if detach else t for t in execution.tensors] for execution in executions]
