"""`EmbeddingLayerGradCam` in its modes: gradients of one tuple or of many, and transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.methods.method import (
    CHOSEN_LAYER,
    RECOMMENDED_LAYER,
    BankSpec,
    Explainer,
    Method,
    Query,
    Subject,
)
from captum_embed import EmbeddingLayerGradCam, channel_filters
from captum_embed.channel_filters import ChannelFilter
from captum_embed.layer_executions import run_layer
from captum_embed.map_functions import weighted_sum
from captum_embed.recipes import PAPER, RECOMMENDED, Recipe


def gradient(
    name: str, title: str, num_tuples: int | None, channel_filter: ChannelFilter | None = None
) -> Method:
    """Grad-weights of the image's own tuples: the `num_tuples` hardest, or all mined."""

    def build(subject: Subject) -> Explainer:
        grad_cam = EmbeddingLayerGradCam(
            subject.forward, subject.layer, channel_filter=channel_filter
        )

        def explain(query: Query) -> Tensor:
            references = query.references if num_tuples is None else query.first(num_tuples)
            signed_map: Tensor = grad_cam.attribute(query.image, additional_forward_args=references)
            return signed_map

        return explain

    tuples = "its hardest tuple" if num_tuples == 1 else "its tuples, averaged"
    return Method(
        name, title, "ours", f"gradient of the loss of {tuples}", build, shares_forward=True
    )


def transfer(
    name: str,
    title: str,
    channel_filter: ChannelFilter | None = None,
    num_neighbors: int | None = None,
    map_power: float = 1.0,
) -> Method:
    """Grad-weights borrowed from the nearest bank entries: one forward pass, no labels."""

    def build(subject: Subject) -> Explainer:
        bank = subject.needed_bank()
        grad_cam = EmbeddingLayerGradCam(
            subject.forward, subject.layer, weight_bank=bank, channel_filter=channel_filter
        )
        count = min(num_neighbors or subject.num_neighbors, len(bank))
        return lambda query: grad_cam.attribute(query.image, num_neighbors=count)

    return Method(
        name,
        title,
        "ours",
        "grad-weights transferred from the nearest training images",
        build,
        bank=BankSpec(),
        needs_tuples=False,
        shares_forward=True,
        map_power=map_power,
    )


def recipe(name: str, title: str, chosen: Recipe, layer: str) -> Method:
    """A named recipe of the library, with a bank built as it says."""
    spec = BankSpec(layer, chosen.num_tuples, chosen.mining)

    def build(subject: Subject) -> Explainer:
        grad_cam = chosen.grad_cam(
            subject.forward, subject.layer_of(spec), weight_bank=subject.needed_bank(spec)
        )
        return lambda query: grad_cam.attribute(query.image)

    return Method(
        name,
        title,
        "ours",
        f"grad-weights transferred from {chosen.num_neighbors} nearest training images",
        build,
        bank=spec,
        needs_tuples=False,
        shares_forward=True,
    )


def uniform_control(name: str, title: str, chosen: Recipe, layer: str) -> Method:
    """A recipe's map with every grad-weight equal: what its other settings do by themselves."""

    def build(subject: Subject) -> Explainer:
        map_func = chosen.map_func or weighted_sum
        watched = subject.layer_of(BankSpec(layer, chosen.num_tuples, chosen.mining))

        def explain(query: Query) -> Tensor:
            with torch.no_grad():
                _, executions = run_layer(subject.network, watched, (query.image,))
            activations = executions[0].tensors[0]
            return map_func(torch.ones_like(activations[:, :, 0, 0]), activations)

        return explain

    return Method(
        name,
        title,
        "control",
        "activations alone; the recipe's map with uniform weights",
        build,
        bank=BankSpec(layer, chosen.num_tuples, chosen.mining),
        needs_tuples=False,
        shares_forward=True,
    )


METHODS = (
    recipe("ours_recommended", "Ours, recommended", RECOMMENDED, RECOMMENDED_LAYER),
    uniform_control(
        "control_uniform", "Control: recommended, uniform weights", RECOMMENDED, RECOMMENDED_LAYER
    ),
    recipe("ours_paper", "Ours, as the paper", PAPER, CHOSEN_LAYER),
    gradient("ours_gradient_1", "Ours, gradient, 1 tuple", 1),
    gradient("ours_gradient_50", "Ours, gradient, all tuples", None),
    transfer("ours_transfer", "Ours, transfer"),
    transfer("ours_transfer_positive", "Ours, transfer, positive", channel_filters.positive),
    transfer("ours_transfer_absolute", "Ours, transfer, absolute", channel_filters.absolute),
    transfer(
        "ours_transfer_top50", "Ours, transfer, 50 channels", channel_filters.top_channels(50)
    ),
    transfer(
        "ours_transfer_absolute_10", "Ours, transfer, absolute, 10 neighbours",
        channel_filters.absolute, num_neighbors=10,
    ),
    transfer(
        "ours_transfer_absolute_10_sqrt", "Ours, transfer, absolute, 10 neighbours, square root",
        channel_filters.absolute, num_neighbors=10, map_power=0.5,
    ),
)  # fmt: skip
