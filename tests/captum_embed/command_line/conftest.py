from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FACTORIES = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )

def other():
    return small().append(nn.Linear(8, 4))
"""
TINY = ("--network", "cli_tiny_networks:small", "--layer", "1", "--image-size", "32", "--quiet")


def draw(path: Path, seed: int) -> Path:
    """Writes a picture of its own: noise on a colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (40, 48, 3)) + generator.integers(0, 160, 3)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a network, a folder of classes and two photographs."""
    (tmp_path / "cli_tiny_networks.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for seed in range(6):
        draw(tmp_path / "birds" / ("jay", "wren")[seed % 2] / f"{seed}.png", seed)
    draw(tmp_path / "query.png", 10)
    draw(tmp_path / "hit.png", 11)
    return tmp_path
