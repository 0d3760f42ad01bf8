"""The commands of docs/how_to/command_line.md run as written."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet50

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
    # Pretrained weights are downloaded, and each network is made once; all else is as written.
    monkeypatch.setattr(preparation, "load_network", cache(networks.load_network))
    state = resnet50().state_dict()
    monkeypatch.setattr(networks, "torchvision_state", lambda name, weights: state)
    create: Any = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **settings: create(name, **{**settings, "pretrained": False}),
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
