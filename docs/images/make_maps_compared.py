"""Draws maps_compared.png: one photograph a row, one question a column.

From the root of a checkout: ``.venv/bin/python docs/images/make_maps_compared.py``. The pictures
are composites of scikit-image photographs (the embedded data set); the network is
EfficientNet-Lite0 with its ImageNet weights.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from captum.attr import LayerGradCam
from torch import Tensor

from benchmarks.datasets.cub import load_cub
from benchmarks.datasets.embedded import write_embedded
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import load_rgb
from benchmarks.networks.build import imagenet_network
from captum_embed import SimilarityForward, TripletForward, build_weight_bank, recipes
from captum_embed.visualization import grid, heatmap, overlay

ROWS = ("Cat", "Cup", "Horse", "Photographer", "Shuttle")
FOLDER = Path(__file__).parent


def main() -> None:
    """Write the picture beside this file."""
    with TemporaryDirectory() as folder:
        images = load_cub(write_embedded(Path(folder) / "embedded", images_per_class=8))
        shown = [next(r for r in images.records if r.class_name.endswith(name)) for name in ROWS]
        others = [r for r in images.records if r not in shown]
        photographs = {r.key: np.asarray(load_rgb(r)) for r in shown}
        tensors = {r.key: to_tensor(load_rgb(r)) for r in (*shown, *others)}
    network = imagenet_network().requires_grad_(False)
    with torch.no_grad():
        embeddings = {r.label: [] for r in others}
        for record in others:
            embeddings[record.label].append(network(tensors[record.key][None])[0])
    last, block = (r.layer_of(network) for r in (recipes.EXPLAIN, recipes.LOCALIZE))
    triplets = TripletForward(network)
    dataset = [(tensors[r.key], r.label) for r in others]
    bank = build_weight_bank(triplets, block, dataset, **recipes.LOCALIZE.bank_settings)
    localize = recipes.LOCALIZE.grad_cam(triplets, block, weight_bank=bank)

    rows: list[list[np.ndarray]] = []
    for record in shown:
        own = torch.stack(embeddings[record.label])
        foils = torch.stack([e for k, es in embeddings.items() if k != record.label for e in es])
        match = SimilarityForward(network, own, foils)
        image = tensors[record.key][None]
        maps: list[Tensor] = [
            LayerGradCam(match, last).attribute(image),
            recipes.EXPLAIN.grad_cam(match, last).attribute(image),
            localize.attribute(image),
        ]
        picture = photographs[record.key]
        size = (image.shape[2], image.shape[3])
        rows.append([picture, *(overlay(picture, heatmap(one, size=size)) for one in maps)])
    titles = [
        "photograph",
        "LayerGradCam\nof the match",
        "EXPLAIN: what does\nthe match rest on?",
        "LOCALIZE: where\nis the object?",
    ]
    grid(rows, titles).savefig(FOLDER / "maps_compared.png", dpi=110)


if __name__ == "__main__":
    main()
