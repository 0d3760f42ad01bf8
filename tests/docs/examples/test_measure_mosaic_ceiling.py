"""The ceiling of mosaics on networks whose answer is known."""

import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.networks.build import EmbeddingNetwork
from docs.examples.measure_mosaic_ceiling import cell_embeddings, found


def mosaic_of(cells: torch.Tensor) -> torch.Tensor:
    first, second, third, fourth = cells
    return torch.cat([torch.cat([first, second], 2), torch.cat([third, fourth], 2)], 1)


def test_a_network_that_reads_pixels_alone_finds_every_cell() -> None:
    torch.manual_seed(0)
    network = EmbeddingNetwork(nn.Conv2d(3, 8, 1), nn.Linear(8, 5, bias=False)).eval()
    cells = torch.rand(4, 3, 6, 8)
    embeddings = cell_embeddings(network, mosaic_of(cells))
    torch.testing.assert_close(embeddings, network(cells))
    assert found(embeddings, embeddings) == (1.0, 1.0)


def test_the_foils_count_against_a_cell_that_is_like_everything() -> None:
    # The third cell is the most similar to each reference, and to all of them.
    references = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]), dim=1)
    cells = torch.stack([0.4 * references[0], 0.4 * references[1], references[3], references[3]])
    alone, with_foils = found(cells, references)
    by_hand = references @ cells.T
    assert alone == (by_hand.argmax(1) == torch.arange(4)).double().mean()
    others = [[j for j in range(4) if j != i] for i in range(4)]
    less = torch.stack([by_hand[i] - by_hand[others[i]].mean(0) for i in range(4)])
    assert with_foils == (less.argmax(1) == torch.arange(4)).double().mean()
    assert alone < with_foils


def test_it_runs_on_real_birds(shared_root: Path) -> None:
    cub = shared_root / "cub"
    words = [
        sys.executable, "-m", "docs.examples.measure_mosaic_ceiling", "--num-mosaics", "1",
        "--data", str(cub / "CUB_200_2011"), "--test-classes", "26-29",
        "--checkpoint", str(cub / "efficientnet_lite0_triplet.safetensors"),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "1 mosaics of" in done.stdout
