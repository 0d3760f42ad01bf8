"""Draws maps_compared.png: one photograph a row, one way to make a map a column.

From the root of a checkout: ``.venv/bin/python docs/images/make_maps_compared.py``. The pictures
are composites of scikit-image photographs (the embedded data set); the network is
EfficientNet-Lite0 with its ImageNet weights.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.embedded import write_embedded
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import load_rgb
from benchmarks.networks.build import imagenet_network
from captum_embed import (
    EmbeddingLayerGradCam,
    TripletForward,
    build_weight_bank,
    channel_filters,
    map_functions,
)
from captum_embed.recipes import LOCALIZE
from captum_embed.visualization import grid, heatmap, overlay

ROWS = ("Cat", "Cup", "Horse", "Photographer", "Shuttle")
FOLDER = Path(__file__).parent


def main() -> None:
    """Builds two small banks, explains five photographs, and saves the figure."""
    with TemporaryDirectory() as folder:
        images = load_cub(write_embedded(Path(folder) / "embedded", images_per_class=8))
        shown = [next(r for r in images.records if r.class_name.endswith(name)) for name in ROWS]
        bank_images = [r for r in images.records if r not in shown]
        tensors = {r.key: to_tensor(load_rgb(r)) for r in (*shown, *bank_images)}
        network = imagenet_network().requires_grad_(False)
        forward = TripletForward(network)
        dataset = [(tensors[r.key], r.label) for r in bank_images]
        last, block = network.features, network.recommended_layer
        banks = {layer: build_weight_bank(forward, layer, dataset) for layer in (last, block)}

        def transfer(layer: torch.nn.Module, **settings: object) -> EmbeddingLayerGradCam:
            return EmbeddingLayerGradCam(
                forward,
                layer,
                weight_bank=banks[layer],
                **settings,  # type: ignore[arg-type]
            )

        columns = {
            "last activation,\nsigned weights": transfer(last),
            "last activation,\nabsolute weights": transfer(
                last, channel_filter=channel_filters.absolute
            ),
            "last block,\nweighted norm": transfer(block, map_func=map_functions.weighted_norm),
            "last block,\nfrom the background": LOCALIZE.grad_cam(
                forward, block, weight_bank=banks[block]
            ),
        }
        rows = []
        for record in shown:
            image = tensors[record.key][None]
            picture = np.array(load_rgb(record))
            maps = [method.attribute(image) for method in columns.values()]
            heats = [heatmap(one, image.shape[2:]) for one in maps]
            rows.append([picture, *(overlay(picture, heat) for heat in heats)])
        figure = grid(rows, ["photograph", *columns], cell=1.9)
        figure.savefig(FOLDER / "maps_compared.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
