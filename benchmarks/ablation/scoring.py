"""Boxes of each variant on each image, as protocol B measures them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ablation.activations import ActivationCache, Tail
from benchmarks.ablation.banks import build_bank, transferred
from benchmarks.ablation.variants import BankVariant, Variant
from benchmarks.datasets.records import clip_box, load_rgb
from benchmarks.methods.reductions import heatmap
from benchmarks.metrics.localization import threshold_sweep
from benchmarks.protocols.boxes import ten_thousandths

# How much a second layer's map counts, in the exponent.
FUSED_SHARE = 0.15


class Fold:
    """Variants with banks of some images, ready to score others.

    Args:
        cache (ActivationCache): filled.
        bank_indices (sequence of int): images of the banks.
        query_indices (sequence of int): images to score.
        variants (sequence of Variant): to compare.
        margin (float): of the triplet loss.
        seed (int): of mining.
    """

    def __init__(
        self,
        cache: ActivationCache,
        bank_indices: Sequence[int],
        query_indices: Sequence[int],
        variants: Sequence[Variant],
        *,
        margin: float,
        seed: int,
    ) -> None:
        self.cache = cache
        self.query_indices = query_indices
        self.variants = variants
        self.weights: dict[tuple[str, str], Tensor] = {}
        banks = {}
        embeddings: dict[BankVariant, Tensor] = {}
        for variant in variants:
            for bank_variant in _banks_of(variant):
                if bank_variant not in banks:
                    banks[bank_variant] = build_bank(
                        cache, bank_indices, bank_variant, margin=margin, seed=seed
                    )
                    embeddings[bank_variant] = self._embed(bank_variant)
                self.weights[variant.key, bank_variant.layer] = transferred(
                    variant, banks[bank_variant], embeddings[bank_variant]
                )

    @torch.no_grad()
    def _embed(self, bank_variant: BankVariant) -> Tensor:
        tail = Tail(self.cache.network, bank_variant)
        return torch.cat(
            [tail(self.cache.load_layer(i, bank_variant.layer)) for i in self.query_indices]
        )

    def records(self, done: set[str]) -> Iterator[dict[str, Any]]:
        """One record per image that is not done: the IoU of each variant at each threshold."""
        for place, index in enumerate(self.query_indices):
            record = self.cache.records[index]
            if record.key in done:
                continue
            image = load_rgb(record)
            box = clip_box(record.box, *image.size)
            activations = self.cache.load(index)
            yield {
                "key": record.key,
                "label": record.label,
                "iou": {
                    variant.key: ten_thousandths(
                        threshold_sweep(
                            self.heatmap(variant, place, activations, image.size[::-1]), box
                        ).iou
                    )
                    for variant in self.variants
                },
            }

    def heatmap(
        self,
        variant: Variant,
        place: int,
        activations: dict[str, Tensor],
        size: tuple[int, int],
    ) -> np.ndarray:
        """The heatmap (H, W) of one variant."""

        def at(layer: str, view: str) -> Tensor:
            weights = self.weights[variant.key, layer][place : place + 1]
            heatmap = F.relu(variant.map_func(weights, activations[f"{view}/{layer}"]))
            return heatmap / heatmap.amax().clamp(min=1e-12)

        plain = at(variant.bank.layer, "plain")
        for view in variant.views[1:]:
            other = at(variant.bank.layer, view)
            plain = plain + F.interpolate(
                other, plain.shape[2:], mode="bilinear", align_corners=False
            )
        if variant.fused_with is not None:
            second = at(variant.fused_with, "plain")
            size_of_both = second.shape[2:] if second.shape[2] > plain.shape[2] else plain.shape[2:]
            first, second = (
                F.interpolate(one, size_of_both, mode="bilinear", align_corners=False)
                for one in (plain, second)
            )
            plain = first ** (1 - FUSED_SHARE) * second**FUSED_SHARE
        if variant.percentile < 100:
            plain = plain.clamp(max=torch.quantile(plain, variant.percentile / 100).item())
        pixels = heatmap(plain, size)
        if variant.power == 1 or not pixels.any():
            return pixels
        return (pixels / pixels.max()) ** variant.power


def _banks_of(variant: Variant) -> list[BankVariant]:
    if variant.fused_with is None:
        return [variant.bank]
    return [variant.bank, replace(variant.bank, layer=variant.fused_with)]
