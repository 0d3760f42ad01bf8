"""Grad-CAM for embedding networks: from a query to its map, in the order in which it happens.

Run the network and record the layer; take the grad-weights, from gradients or from the bank;
filter them; weigh the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from captum.attr import LayerAttribution
from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_embed.channel_filters import ChannelFilter, filtered
from captum_embed.encoders import embedding_of, encoder_of, require_evaluation_mode
from captum_embed.errors import InputError
from captum_embed.input_executions import LayerReader, checked_inputs, run_inputs
from captum_embed.layer_executions import (
    PerExecution,
    layer_gradients,
    packed,
    require_finite,
    run_forward,
)
from captum_embed.layouts import Layout, checked_layout, require_gradient_of_places
from captum_embed.map_functions import (
    MapFunction,
    checked_map,
    mean_over_space,
    over_space,
    weighted_sum,
)
from captum_embed.weight_bank import WeightBank
from captum_embed.weight_bank.queries import (
    Neighbors,
    nearest_entries,
    require_compatible,
    require_fit,
)

# A tensor gives a tensor, a tuple a tuple, and type checkers see it; Captum's log has no types.
_Inputs = TypeVar("_Inputs", Tensor, tuple[Tensor, ...])
_Method = TypeVar("_Method", bound=Callable[..., Any])
_logged: Callable[[_Method], _Method] = log_usage()

_WITHOUT_BANK = "{} is {!r}, which has no meaning without a weight bank; leave it out, or give one"


class EmbeddingLayerGradCam(LayerAttribution, GradientAttribution):
    r"""Grad-CAM maps for networks that embed images and have no class score.

    The explained value :math:`y` is a metric loss, or anything else that ``forward_func``
    returns. With :math:`A` the output of ``layer``, and :math:`f` the ``channel_filter``,

    .. math::
        w[n, c] = \mathrm{mean}_{h,w}\; \partial y[n] / \partial A[n, c, h, w], \qquad
        \mathrm{map}[n] = \sum_c f(w)[n, c]\, A[n, c]

    Without a ``weight_bank`` it is a drop-in for :class:`captum.attr.LayerGradCam`. With one, a
    query borrows the weights of its nearest entries: one forward pass, no labels, no graph.

    **Shared encoders.** Of k inputs the result is a tuple of k maps, in their order, where the
    layer runs once for each, or once on all of them concatenated. (Captum keeps only a layer's
    last run.) What is given in ``additional_forward_args`` is not explained. A layer that runs
    more than once per input (a reused ReLU, tied weights) is refused unless ``execution`` says
    which run is meant.

    **Threads** may share a network and an object. Grad-weights are kept in **single precision**.

    Args:
        forward_func: Forward function of the model or any modification of it: returns one value
            per example, (N,), or one scalar for the batch (an in-batch loss).
        layer: Layer to explain, the module itself: it puts out (N, C, H, W), or (N, C), or as
            ``layout`` says, or a tuple of these.
        device_ids: Device order, needed only if ``forward_func`` wraps a ``DataParallel`` model.
        weight_bank: Grad-weights of training images, from :func:`build_weight_bank`.
        embedding_func: With a bank: maps queries to embeddings (N, D), running the layer.
            Default: ``forward_func.encoder``.
        num_neighbors: With a bank: how many nearest entries are averaged.
        channel_filter: One of :mod:`captum_embed.channel_filters`. Default: identity.
        map_func: One of :mod:`captum_embed.map_functions`. Default: the weighted sum.
        layout: Where the layer has its channels: ``"channels_first"`` (N, C, ...),
            ``"channels_last"`` (N, ..., C), or ``"tokens"`` (N, T, C).
        prefix_tokens: Of tokens: how many at the front (class token, registers) have no place in
            the image. None: told from the number of tokens and the image's size, or refused.
        grid: Of tokens: rows and columns of the others. None: likewise.
        execution: Which run of a layer that runs more than once per input: 0 is the first, -1
            the last (Captum's choice).

    Raises:
        InputError: An argument does not fit; or there is a bank, and no embedding function.
        BankMismatchError: The bank was built for another layer.

    Source: Chen et al., Adapting Grad-CAM for Embedding Networks, WACV 2020, sections 3.2, 3.3;
        Selvaraju et al., Grad-CAM, ICCV 2017.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_embed import EmbeddingLayerGradCam, TripletForward
        >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> grad_cam = EmbeddingLayerGradCam(TripletForward(encoder, margin=9.0), encoder[0])
        >>> maps = grad_cam.attribute(tuple(torch.rand(3, 2, 3, 8, 8)))
        >>> [tuple(one.shape) for one in maps]  # of anchors, positives and negatives
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
        self.map_func = checked_map(map_func)
        self.layout = checked_layout(layout, prefix_tokens, grid)
        self.prefix_tokens = prefix_tokens
        self.grid = grid
        self.execution = execution
        if weight_bank is not None:
            encoder = self._embedding_func()
            require_compatible(weight_bank, forward_func, encoder, layer, layout, prefix_tokens)

    @_logged
    def attribute(
        self,
        inputs: _Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        num_neighbors: int | None = None,
        exclude: Collection[Any] | None = None,
    ) -> _Inputs:
        r"""Maps of the inputs.

        Args:
            inputs: Without a bank, the input(s) of ``forward_func``, dimension 0 counting
                examples. With a bank, query images (N, ...), or a tuple of such batches, each
                explained on its own.
            target: Index into the output of ``forward_func``; not with a bank.
            additional_forward_args: Further arguments of ``forward_func`` (with a bank: of the
                embedding function), which are not explained.
            attribute_to_layer_input: Explain what goes into the layer instead of its output.
            relu_attributions: Set negative values of the map to zero.
            attr_dim_summation: Sum over channels. If False, the map keeps its C channels.
            grad_kwargs: Keyword arguments of ``torch.autograd.grad``. With
                ``create_graph=True`` the maps stay differentiable; otherwise they are detached.
            num_neighbors: With a bank: as in the constructor, which gives the default.
            exclude: With a bank: keys or labels of entries that no query may borrow from.

        Returns:
            Map (N, 1, H, W), or (N, C, H, W) without summation; (N, 1) for layers of shape
            (N, C). Of a tuple of inputs, a tuple of maps; but of a tuple of one, without a bank,
            its map alone, as from ``LayerGradCam``. Of a layer that returns a tuple, each map is
            a tuple in turn: the type, which follows the inputs, leaves both out.

        Raises:
            InputError: An argument does not fit; among them a bank's arguments without one.
            LayerError: The layer never ran, or more than once per input; its layout is not the
                one stated; its patches have no gradient; its activations are not finite. With a
                bank: the encoder is in training mode and behaves differently in it.
            BankMismatchError: Embeddings or channels differ in number from the bank's.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed import EmbeddingLayerGradCam, TripletForward, WeightBank
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> bank = WeightBank(embeddings=torch.rand(10, 4), weights=torch.rand(10, 4))
            >>> cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder[0], weight_bank=bank)
            >>> maps = cam.attribute(torch.rand(2, 3, 8, 8), num_neighbors=3)
            >>> cam.interpolate(maps, (8, 8), interpolate_mode="bilinear").shape
            torch.Size([2, 1, 8, 8])
        """
        if not attr_dim_summation and self.map_func is not None:
            raise InputError("attr_dim_summation=False keeps channels apart; leave map_func out")

        def map_of(weights: Tensor, activations: Tensor) -> Tensor:
            weights = filtered(weights, self.channel_filter)
            if attr_dim_summation:
                maps = (self.map_func or weighted_sum)(weights, activations)
            else:
                maps = over_space(weights, activations) * activations
            return F.relu(maps) if relu_attributions else maps

        of_gradients = target, attribute_to_layer_input, grad_kwargs
        of_bank = num_neighbors, exclude
        return self._results(inputs, map_of, additional_forward_args, of_gradients, of_bank)

    def grad_weights(
        self,
        inputs: _Inputs,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        num_neighbors: int | None = None,
        exclude: Collection[Any] | None = None,
    ) -> _Inputs:
        """Grad-weights of the inputs, before any channel filter.

        Arguments, errors and tuples are those of :meth:`attribute`.

        Returns:
            Shape (N, C), in single precision or better.

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
        of_gradients = target, attribute_to_layer_input, grad_kwargs
        arguments = additional_forward_args, of_gradients, (num_neighbors, exclude)
        return self._results(inputs, lambda weights, _: weights, *arguments)

    def neighbors(
        self,
        queries: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        *,
        num_neighbors: int | None = None,
        exclude: Collection[Any] | None = None,
    ) -> Neighbors | tuple[Neighbors, ...]:
        """The bank entries whose weights the queries borrow.

        Arguments and errors are those of :meth:`attribute`.

        Returns:
            Keys, labels, distances and indices, each (N, k); for a tuple of queries, a tuple.

        Example::

            >>> import torch
            >>> from torch import nn
            >>> from captum_embed import EmbeddingLayerGradCam, TripletForward, WeightBank
            >>> encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> images = torch.rand(5, 3, 8, 8)
            >>> bank = WeightBank(encoder(images).detach(), torch.rand(5, 4), keys=list("abcde"))
            >>> cam = EmbeddingLayerGradCam(TripletForward(encoder), encoder[0], weight_bank=bank)
            >>> cam.neighbors(images[1:3]).keys
            [['b'], ['c']]
        """
        if (bank := self.weight_bank) is None:
            raise InputError("neighbors are entries of a weight bank; pass weight_bank=...")
        arguments = _format_additional_forward_args(additional_forward_args)
        neighbors = []
        for query in checked_inputs(queries):
            require_evaluation_mode(self._embedding_func(), self.forward_func, self.layer)
            with torch.no_grad():
                output = run_forward(self._embedding_func(), (query,), None, arguments)
            embeddings = embedding_of(output)
            require_fit(bank, embeddings, len(query))
            count = self._count(num_neighbors)
            neighbors.append(nearest_entries(bank, embeddings, count, exclude))
        return tuple(neighbors) if isinstance(queries, tuple) else neighbors[0]

    def _results(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        result_of: Callable[[Tensor, Tensor], Tensor],
        additional_forward_args: Any,
        of_gradients: tuple[Any, bool, dict[str, Any] | None],
        of_bank: tuple[int | None, Collection[Any] | None],
    ) -> Any:
        """What ``result_of`` makes of the weights (N, C) and activations of each input."""
        queries = checked_inputs(inputs)
        arguments = _format_additional_forward_args(additional_forward_args)
        if self.weight_bank is None:
            for name, value in zip(("num_neighbors", "exclude"), of_bank, strict=True):
                if value is not None and (name, value) != ("num_neighbors", 1):
                    raise InputError(_WITHOUT_BANK.format(name, value))
            return packed(*self._from_gradients(queries, arguments, *of_gradients), result_of)
        if of_gradients != (None, False, None):
            raise InputError(
                "target, grad_kwargs and attribute_to_layer_input belong to gradients, and with a "
                "weight bank none are taken (it holds the weights of the layer's output); leave "
                "them out, or build EmbeddingLayerGradCam without a bank"
            )
        results = [
            packed(*self._from_bank(self.weight_bank, query, arguments, *of_bank), result_of)
            for query in queries
        ]
        return tuple(results) if isinstance(inputs, tuple) else results[0]

    def _from_gradients(
        self,
        inputs: tuple[Tensor, ...],
        arguments: Any,
        target: Any,
        attribute_to_layer_input: bool,
        grad_kwargs: dict[str, Any] | None,
    ) -> tuple[PerExecution, PerExecution]:
        reader = self._reader()
        differentiable = bool(grad_kwargs and grad_kwargs.get("create_graph"))
        with torch.enable_grad():
            output, executions = run_inputs(
                self.forward_func,
                self.layer,
                inputs,
                target,
                arguments,
                device_ids=self.device_ids,
                attribute_to_layer_input=attribute_to_layer_input,
                cut=not differentiable,
                execution=self.execution,
            )
            activations = reader.activations(executions, inputs, detach=not differentiable)
            gradients = layer_gradients(output, executions, grad_kwargs)
            of_places = [
                [reader.channels_first(gradient, image) for gradient in each]
                for each, image in zip(gradients, inputs, strict=True)
            ]
        weights = [[mean_over_space(gradient) for gradient in each] for each in of_places]
        require_finite("grad-weights", self.layer, weights)
        require_finite("activations", self.layer, activations)
        if self.layout == "tokens":
            for whole, places in zip(gradients, of_places, strict=True):
                require_gradient_of_places(whole, places, self.layer, self.forward_func)
        return weights, activations

    def _from_bank(
        self,
        bank: WeightBank,
        query: Tensor,
        arguments: Any,
        num_neighbors: int | None,
        exclude: Collection[Any] | None,
    ) -> tuple[PerExecution, PerExecution]:
        require_evaluation_mode(self._embedding_func(), self.forward_func, self.layer)
        with torch.no_grad():
            output, executions = run_inputs(
                self._embedding_func(),
                self.layer,
                (query,),
                None,
                arguments,
                device_ids=self.device_ids,
                execution=self.execution,
            )
            embeddings = embedding_of(output)
            reader = self._reader()
            (activations,) = reader.activations(executions, (query,), detach=True)
            require_finite("activations", self.layer, [activations])
            require_fit(bank, embeddings, len(query), activations, reader.named)
            nearest = nearest_entries(bank, embeddings, self._count(num_neighbors), exclude)
            weights = bank.mean_weights(nearest.indices).to(activations[0].device)
        return [list(weights.split([each.shape[1] for each in activations], 1))], [activations]

    def _count(self, num_neighbors: int | None) -> int:
        return self.num_neighbors if num_neighbors is None else num_neighbors

    def _embedding_func(self) -> Callable[..., Tensor]:
        given = self.embedding_func
        return encoder_of(self.forward_func) if given is None else given

    def _reader(self) -> LayerReader:
        return LayerReader(
            self.forward_func, self.layer, self.layout, self.prefix_tokens, self.grid
        )
