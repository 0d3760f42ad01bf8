"""`EmbeddingLayerGradCam` by its recipes, against references and from a bank, with the controls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.methods.captum_call import seeded_by
from benchmarks.methods.method import (
    CHOSEN_LAYER,
    RECOMMENDED_LAYER,
    BankSpec,
    Explainer,
    Family,
    Method,
    Query,
    Subject,
)
from captum_embed import EmbeddingLayerGradCam, TripletForward
from captum_embed.encoder_forward import Explains
from captum_embed.recipes import EXPLAIN, LOCALIZE, PAPER, TRANSFER, Recipe

LAYERS = {"last_activation": CHOSEN_LAYER, "last_block": RECOMMENDED_LAYER}

# Grad-weights (1, C) to those of a control.
Control = Callable[[Tensor], Tensor]


def bank_of(recipe: Recipe, explains: Explains = "match") -> BankSpec:
    """The bank that a recipe borrows from."""
    return BankSpec(LAYERS[recipe.layer], recipe.num_tuples, recipe.mining, explains)


def against_references(name: str, title: str, recipe: Recipe | None, explains: str) -> Method:
    """The gradient of the match itself: one partial backward pass."""

    def build(subject: Subject) -> Explainer:
        if recipe is None:
            grad_cam = EmbeddingLayerGradCam(subject.forward, subject.layer)
        else:
            grad_cam = recipe.grad_cam(subject.forward, subject.layer_of(bank_of(recipe)))

        def explain(query: Query) -> Tensor:
            signed_map = grad_cam.attribute(query.image, additional_forward_args=query.references)
            assert isinstance(signed_map, Tensor)
            return signed_map

        return explain

    layers = () if recipe is None else (LAYERS[recipe.layer],)
    return Method(name, title, "ours", explains, build, layers=layers, shares_forward=True)


def transferred(
    name: str,
    title: str,
    recipe: Recipe,
    explains: Explains = "match",
    control: Control | None = None,
    what: str = "",
) -> Method:
    """Grad-weights of the nearest bank entries: one forward pass, no labels, no references."""
    spec = bank_of(recipe, explains)

    def build(subject: Subject) -> Explainer:
        asked: list[Tensor] = []

        def embed(images: Tensor) -> Tensor:
            embedding: Tensor = subject.network(images)
            return asked[0] if asked else embedding

        grad_cam = recipe.grad_cam(
            TripletForward(subject.network, explains=explains),
            subject.layer_of(spec),
            weight_bank=subject.needed_bank(spec),
            embedding_func=embed,
        )
        if control is not None:
            chosen = grad_cam.channel_filter
            grad_cam.channel_filter = lambda weights: control(
                chosen(weights) if chosen else weights
            )

        def explain(query: Query) -> Tensor:
            asked[:] = [query.references[0].mean(1)] if query.asked else []
            with seeded_by(subject.seed, query.image):
                signed_map = grad_cam.attribute(query.image)
            assert isinstance(signed_map, Tensor)
            return signed_map

        return explain

    family: Family = "ours" if control is None else "control"
    count = recipe.num_neighbors
    lent_by = "nearest training image" if count == 1 else f"{count} nearest training images"
    what = what or f"weights of the {lent_by} ({explains})"
    return Method(
        name, title, family, what, build, bank=spec, needs_tuples=False, shares_forward=True
    )


def permuted(weights: Tensor) -> Tensor:
    """The weights of each image on other channels; the draw is seeded for each image."""
    order = torch.randperm(weights.shape[1]).to(weights.device)
    return weights[:, order]


METHODS = (
    transferred("ours_localize", "Ours, LOCALIZE", LOCALIZE),
    transferred(
        "control_uniform", "Control: LOCALIZE, uniform weights", LOCALIZE,
        control=torch.ones_like, what="the map of LOCALIZE with every weight equal",
    ),
    transferred(
        "control_permuted", "Control: LOCALIZE, permuted weights", LOCALIZE,
        control=permuted, what="the map of LOCALIZE with its weights on other channels",
    ),
    transferred("ours_transfer", "Ours, TRANSFER", TRANSFER),
    transferred(
        "control_transfer_uniform", "Control: TRANSFER, uniform weights", TRANSFER,
        control=torch.ones_like, what="the map of TRANSFER with every weight equal",
    ),
    transferred(
        "control_transfer_permuted", "Control: TRANSFER, permuted weights", TRANSFER,
        control=permuted, what="the map of TRANSFER with its weights on other channels",
    ),
    against_references(
        "ours_transfer_references", "Ours, TRANSFER, references", TRANSFER,
        "signed distance from the border, by the gradient of the match with the references",
    ),
    against_references(
        "ours_explain", "Ours, EXPLAIN", EXPLAIN, "gradient of the match with the references"
    ),
    transferred("ours_explain_transfer", "Ours, EXPLAIN, transfer", EXPLAIN),
    transferred(
        "control_explain_uniform", "Control: EXPLAIN, uniform weights", EXPLAIN,
        control=torch.ones_like, what="the map of EXPLAIN with every weight equal",
    ),
    transferred(
        "control_explain_permuted", "Control: EXPLAIN, permuted weights", EXPLAIN,
        control=permuted, what="the map of EXPLAIN, transferred weights on other channels",
    ),
    transferred("ours_paper", "Ours, as the paper, match", PAPER),
    transferred("ours_paper_loss", "Ours, as the paper, loss", PAPER, "loss"),
    against_references(
        "ours_gradient", "Ours, no recipe", None, "plain Grad-CAM of the match"
    ),
)  # fmt: skip
