"""Grad-CAM for embedding networks: from a query to its map, in the order in which it happens.

Run the network and record the layer; take the grad-weights, from gradients or from the bank;
filter them; weigh the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args, _run_forward
from captum.attr import LayerAttribution
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.channel_filters import ChannelFilter
from captum_embed.embeddings import embedding_of
from captum_embed.errors import InputError, LayerError
from captum_embed.evaluation_mode import require_evaluation_mode
from captum_embed.input_executions import executions_of_inputs
from captum_embed.layer_executions import (
    LayerExecution,
    Maps,
    PerExecution,
    checked_inputs,
    layer_gradients,
    layer_name,
    packed,
    run_layer,
)
from captum_embed.layouts import (
    Layout,
    channels_first,
    checked_layout,
    require_gradient_of_places,
    require_layout,
)
from captum_embed.map_functions import MapFunction, over_space, weighted_sum
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.compatibility import require_compatible, require_fit
from captum_embed.weight_bank.neighbors import Neighbors, nearest_entries

_WITHOUT_BANK = (
    "{} is {!r}, which only means something with a weight bank; pass weight_bank=..., "
    "or leave it out"
)


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

    **Shared encoders.** Of k inputs the result is a tuple of k maps, in their order, where the
    layer runs once for each, or once on all of them concatenated. Of a single input the result
    is one map, of the whole batch that the layer put out. What is given in
    ``additional_forward_args`` is not explained. A layer that runs more than once per input (a
    reused ReLU, tied weights) is refused unless ``execution`` says which run is meant.

    **Threads** may share a network and an object. **Half precision**: the mean over space and the
    grad-weights are kept in single precision. On a ResNet-18 they stay within 2% (float16) and
    10% (bfloat16) of their norm in single precision (``test_half_precision_is_near_single``).

    Args:
        forward_func: Forward function of the model or any modification of it: returns one value
            per example, (N,), or one scalar for the batch (an in-batch loss).
        layer: Layer to explain, the module itself: its output is (N, C, H, W), or (N, C), or as
            ``layout`` says, or a tuple of these.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        weight_bank: Grad-weights of training images, from :func:`build_weight_bank`.
        embedding_func: With a bank: maps queries to embeddings (N, D), running the layer.
            Default: ``forward_func.encoder``.
        num_neighbors: With a bank: how many nearest entries are averaged.
        channel_filter: Maps grad-weights (N, C) to (N, C), see
            :mod:`captum_embed.channel_filters`. Default: identity.
        map_func: Maps filtered weights (N, C) and activations (N, C, H, W) to maps
            (N, 1, H, W), see :mod:`captum_embed.map_functions`. Default: the weighted sum.
        layout: Where the layer has its channels: ``"channels_first"`` (N, C, ...),
            ``"channels_last"`` (N, ..., C), or ``"tokens"`` (N, T, C).
        prefix_tokens: Of tokens: how many at the front (class token, registers) have no place in
            the image. None: found from the number of tokens and the image's size, or refused.
        grid: Of tokens: rows and columns of the others. None: likewise.
        execution: Which run of a layer that runs more than once per input: 0 is the first, -1
            the last (which is what Captum's ``LayerGradCam`` explains).

    Raises:
        InputError: An argument does not fit; or a bank is given, and no embedding function can
            be found.
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
        num_neighbors: int = 1,
        channel_filter: ChannelFilter | None = None,
        map_func: MapFunction | None = None,
        layout: Layout = "channels_first",
        prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
        execution: int | None = None,
    ) -> None:
        if not isinstance(layer, nn.Module):
            raise InputError(
                f"layer is {layer!r}; expected the module itself, such as "
                "model.get_submodule('layer4') for a name"
            )
        if weight_bank is None and num_neighbors != 1:
            raise InputError(_WITHOUT_BANK.format("num_neighbors", num_neighbors))
        LayerAttribution.__init__(self, forward_func, layer, device_ids)
        GradientAttribution.__init__(self, forward_func)
        self.weight_bank = weight_bank
        self.embedding_func = embedding_func
        self.num_neighbors = num_neighbors
        self.channel_filter = channel_filter
        self.map_func = map_func
        self.layout = checked_layout(layout, prefix_tokens, grid)
        self.prefix_tokens = prefix_tokens
        self.grid = grid
        self.execution = execution
        if weight_bank is not None:
            require_compatible(
                weight_bank,
                forward_func,
                self._embedding_func(),
                layer,
                layout=layout,
                prefix_tokens=prefix_tokens,
            )

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
        num_neighbors: int | None = None,
        exclude: Collection[Any] | None = None,
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
            num_neighbors: With a bank: how many nearest entries are averaged. Default: the
                constructor's.
            exclude: With a bank: keys or labels of entries that no query may borrow from, such
                as the query's own.

        Returns:
            Map (N, 1, H, W), or (N, C, H, W) without summation; (N, 1) for layers of shape
            (N, C). A tuple of maps where ``inputs`` is a tuple of several, where the layer
            returns a tuple, or with a bank where ``inputs`` is a tuple of queries.

        Raises:
            InputError: An argument does not fit; among them a bank's arguments without one.
            LayerError: The layer never ran, or more than once per input; its layout is not the
                one stated; its patches have no gradient; its activations are not finite. With a
                bank: the encoder is in training mode and behaves differently in it.
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
            exclude,
        )

    def grad_weights(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        num_neighbors: int | None = None,
        exclude: Collection[Any] | None = None,
    ) -> Maps:
        """Grad-weights of the inputs, before any channel filter.

        Args:
            inputs: As in :meth:`attribute`.
            target: As in :meth:`attribute`.
            additional_forward_args: As in :meth:`attribute`.
            attribute_to_layer_input: As in :meth:`attribute`.
            grad_kwargs: As in :meth:`attribute`.
            num_neighbors: As in :meth:`attribute`.
            exclude: As in :meth:`attribute`.

        Returns:
            Shape (N, C), in single precision or better: the mean gradient of each channel, or
            with a bank the mean weights of the nearest entries. A tuple where :meth:`attribute`
            gives one.

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
            exclude,
        )

    def neighbors(
        self,
        queries: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        *,
        num_neighbors: int | None = None,
        exclude: Collection[Any] | None = None,
    ) -> Neighbors | tuple[Neighbors, ...]:
        """The bank entries whose weights the queries borrow.

        Args:
            queries: Images (N, ...), or a tuple of such batches.
            additional_forward_args: Further arguments of the embedding function.
            num_neighbors: As in :meth:`attribute`.
            exclude: As in :meth:`attribute`.

        Returns:
            Keys, labels, distances and indices, each (N, k); for a tuple of queries, a tuple.

        Raises:
            InputError: There is no bank, or an argument does not fit.
            BankMismatchError: The embeddings do not fit the bank's.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed import EmbeddingLayerGradCam, TripletForward, WeightBank
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> images = torch.rand(5, 3, 8, 8)
            >>> bank = WeightBank(encoder(images).detach(), torch.rand(5, 4), keys=list("abcde"))
            >>> forward = TripletForward(encoder)
            >>> grad_cam = EmbeddingLayerGradCam(forward, encoder[0], weight_bank=bank)
            >>> grad_cam.neighbors(images[1:3]).keys
            [['b'], ['c']]
        """
        if self.weight_bank is None:
            raise InputError("neighbors are entries of a weight bank; pass weight_bank=...")
        found = []
        for query in checked_inputs(queries):
            self._require_evaluation_mode()
            with torch.no_grad():
                arguments = _format_additional_forward_args(additional_forward_args)
                output = _run_forward(self._embedding_func(), query, None, arguments)
            embeddings = embedding_of(output)
            require_fit(self.weight_bank, embeddings, self.weight_bank.num_channels, len(query))
            found.append(self._nearest(embeddings, num_neighbors, exclude))
        return tuple(found) if isinstance(queries, tuple) else found[0]

    def _each_query(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        result_of: Callable[[Tensor, Tensor], Tensor],
        target: Any,
        additional_forward_args: Any,
        attribute_to_layer_input: bool,
        grad_kwargs: dict[str, Any] | None,
        num_neighbors: int | None,
        exclude: Collection[Any] | None,
    ) -> Maps:
        queries = checked_inputs(inputs)
        arguments = _format_additional_forward_args(additional_forward_args)
        if self.weight_bank is None:
            if num_neighbors not in (None, 1):
                raise InputError(_WITHOUT_BANK.format("num_neighbors", num_neighbors))
            if exclude is not None:
                raise InputError(_WITHOUT_BANK.format("exclude", exclude))
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
        results: tuple[Any, ...] = tuple(
            packed(*self._from_bank(query, arguments, num_neighbors, exclude), result_of)
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
            executions = executions_of_inputs(
                executions,
                self.forward_func,
                self.layer,
                inputs,
                arguments,
                execution=self.execution,
            )
            activations = self._activations(executions, inputs, detach=not differentiable)
            found = layer_gradients(output, executions, grad_kwargs)
            gradients = [
                [self._to_channels_first(gradient, image) for gradient in each]
                for each, image in zip(found, inputs, strict=True)
            ]
        weights = [[_mean_over_space(gradient) for gradient in each] for each in gradients]
        self._require_finite("grad-weights", weights)
        self._require_finite("activations", activations)
        if self.layout == "tokens":
            for each, of_places in zip(found, gradients, strict=True):
                require_gradient_of_places(each, of_places, self.layer, self.forward_func)
        return weights, activations

    def _from_bank(
        self,
        query: Tensor,
        arguments: Any,
        num_neighbors: int | None,
        exclude: Collection[Any] | None,
    ) -> tuple[PerExecution, PerExecution]:
        assert self.weight_bank is not None
        self._require_evaluation_mode()
        embedding_func = self._embedding_func()
        with torch.no_grad():
            output, executions = run_layer(
                embedding_func, self.layer, (query,), None, arguments, device_ids=self.device_ids
            )
            executions = executions_of_inputs(
                executions, embedding_func, self.layer, (query,), execution=self.execution
            )
            embeddings = embedding_of(output)
            (activations,) = self._activations(executions, (query,), detach=True)
            rows = {len(tensor) for tensor in activations}
            if rows != {len(query)}:
                raise LayerError(
                    f"the layer{self._named()} puts out {sorted(rows)} rows for {len(query)} "
                    "queries: which weights are theirs is unknown; choose a layer with one row "
                    "per query"
                )
            self._require_finite("activations", [activations])
            channels = [tensor.shape[1] for tensor in activations]
            require_fit(self.weight_bank, embeddings, sum(channels), len(query))
            indices = self._nearest(embeddings, num_neighbors, exclude).indices
            weights = self.weight_bank.mean_weights(indices).to(activations[0].device)
        return [list(weights.split(channels, dim=1))], [activations]

    def _nearest(
        self, embeddings: Tensor, num_neighbors: int | None, exclude: Collection[Any] | None
    ) -> Neighbors:
        assert self.weight_bank is not None
        count = self.num_neighbors if num_neighbors is None else num_neighbors
        return nearest_entries(self.weight_bank, embeddings, count, exclude)

    def _require_evaluation_mode(self) -> None:
        embedding_func = self._embedding_func()
        network = getattr(embedding_func, "__self__", embedding_func)
        for one in (network, self.forward_func, self.layer):
            if isinstance(one, nn.Module):
                require_evaluation_mode(one)

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

    def _activations(
        self, executions: Sequence[LayerExecution], images: Sequence[Tensor], *, detach: bool
    ) -> PerExecution:
        found = []
        for execution, image in zip(executions, images, strict=True):
            for tensor in execution.tensors:
                require_layout(tensor, self.layout, self.layer, image, self._named())
            tensors = (t.detach() if detach else t for t in execution.tensors)
            found.append([self._to_channels_first(tensor, image) for tensor in tensors])
        return found

    def _to_channels_first(self, tensor: Tensor, image: Tensor) -> Tensor:
        return channels_first(
            tensor,
            self.layout,
            prefix_tokens=self.prefix_tokens,
            grid=self.grid,
            image_size=tuple(image.shape[2:]) if image.dim() == 4 else None,
        )

    def _named(self) -> str:
        name = layer_name(self.forward_func, self.layer)
        return f" '{name}'" if name else f" ({type(self.layer).__name__})"

    def _require_finite(self, what: str, tensors: PerExecution) -> None:
        if all(bool(torch.isfinite(tensor).all()) for each in tensors for tensor in each):
            return
        raise LayerError(
            f"the {what} of the layer ({type(self.layer).__name__}) hold NaN or infinite values; "
            "look for them in the inputs, the network's parameters, and the loss"
        )


def _mean_over_space(gradient: Tensor) -> Tensor:
    wide = _wide(gradient)
    return wide.flatten(2).mean(2) if wide.dim() > 2 else wide


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
