"""Measure how often a network finds the asked cell of a mosaic from each cell's activations alone.

    python -m docs.examples.measure_mosaic_ceiling --data CUB_200_2011 --checkpoint CHECKPOINT

The activations of the whole mosaic are cut into its four cells. Each part is pooled and embedded by
itself, and the cell that is most similar to the reference is the answer. A map of the layer has no
more to go by, so this is a ceiling for its maximum (mosaic pointing). Only mosaics are asked whose
crops the network tells apart one by one; what is missing to 100% is owed to receptive fields that
reach into other cells.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.core.settings import class_choice
from benchmarks.datasets.cub import load_cub
from benchmarks.networks.build import EmbeddingNetwork, build_network
from benchmarks.protocols.protocol import Source
from benchmarks.protocols.registry import PROTOCOLS


def cell_embeddings(network: EmbeddingNetwork, mosaic: Tensor) -> Tensor:
    """The embedding (4, D) of each cell's own activations in a mosaic (3, H, W)."""
    activations = network.features(mosaic[None])
    height, width = activations.shape[2] // 2, activations.shape[3] // 2
    cells = [
        part
        for row in (activations[:, :, :height], activations[:, :, -height:])
        for part in (row[..., :width], row[..., -width:])
    ]
    return F.normalize(network.unnormalized(torch.cat(cells)), dim=1)


def found(cells: Tensor, references: Tensor) -> tuple[float, float]:
    """How often the most similar cell is the reference's: alone, and less the other references."""
    similar = references @ cells.T
    others = (similar.sum(0, keepdim=True) - similar) / (len(similar) - 1)
    right = torch.arange(len(similar))
    shares = [(s.argmax(1) == right).double().mean() for s in (similar, similar - others)]
    return float(shares[0]), float(shares[1])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m docs.examples.measure_mosaic_ceiling",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of CUB-200-2011")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--test-classes", type=class_choice, default="26-35")
    parser.add_argument("--num-mosaics", type=int, default=200)
    settings = parser.parse_args()
    network = build_network("efficientnet_lite0", settings.checkpoint)
    assert isinstance(network, EmbeddingNetwork)
    records = [r for r in load_cub(settings.data).records if r.label in settings.test_classes]
    protocol = PROTOCOLS["mosaic"]
    mosaics = protocol.items(Source(records, embed=network, num_mosaics=settings.num_mosaics))
    shares = [
        found(
            cell_embeddings(network, protocol.frame(each).image), torch.from_numpy(each.embeddings)
        )
        for each in mosaics
    ]
    alone, foils = torch.tensor(shares).mean(0).mul(100).tolist()
    print(f"{len(mosaics)} mosaics of {protocol.num_tried(mosaics)} tried")
    print(f"the asked cell is found in {alone:.1f}% alone, in {foils:.1f}% with foils")


if __name__ == "__main__":
    main()
