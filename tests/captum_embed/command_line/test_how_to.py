"""The commands of docs/how_to/command_line.md run as written."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.models import resnet18
from torchvision.models.resnet import Bottleneck

from captum_embed.command_line import networks, preparation
from captum_embed.command_line.main import main

from .conftest import draw

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how_to" / "command_line.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


def test_the_commands_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (module,) = blocks("python")
    (tmp_path / "networks.py").write_text(module)
    save_file(resnet18(num_classes=64).state_dict(), "trained.safetensors")
    for place, name in enumerate(("query", "hit", "other", "photographs/1")):
        draw(tmp_path / f"{name}.jpg", place)
    for place in range(4):
        for number, folder in enumerate(("birds", "more")):
            name = f"{folder}/{('jay', 'wren')[place % 2]}/{4 * number + place}.jpg"
            draw(tmp_path / name, 10 + 4 * number + place)
    # Networks have few blocks and no pretrained weights, which are downloaded, and each is made
    # once; all else is as written.
    monkeypatch.setattr(preparation, "load_network", cache(networks.load_network))
    make, create = models.get_model, timm.create_model

    def with_few_blocks(name: str, **settings: Any) -> nn.Module:
        return models.ResNet(Bottleneck, [1] * 4) if name == "resnet50" else make(name, **settings)

    state = with_few_blocks("resnet50").state_dict()
    monkeypatch.setattr(models, "get_model", with_few_blocks)
    monkeypatch.setattr(networks, "torchvision_state", lambda name, weights: state)
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **settings: create(name, **{**settings, "pretrained": False, "depth": 2}),
    )
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 14
    with torch.no_grad():
        for command in commands:
            program, *words = shlex.split(command)
            assert program == "captum-embed"
            assert main(words) == 0, (command, capsys.readouterr().err)


def test_the_options_of_the_page_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["explain"], ["bank", "build"], ["bank", "merge"], ["bank", "neighbors"]):
        main([*words, "--help"])
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text())) - {"--version"} <= known
