"""``torchrun -m captum_embed.build_bank`` against ``captum-embed bank build`` in one process."""

import multiprocessing
import os
import socket
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

import captum_embed
from captum_embed import WeightBank
from captum_embed.build_bank import main
from captum_embed.command_line.main import main as run_command

NETWORK = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
"""


@pytest.fixture
def options(tmp_path, monkeypatch):
    (tmp_path / "build_bank_network.py").write_text(NETWORK)
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        path = tmp_path / "birds" / ("jay", "wren")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (40, 48, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    network = ["--network", "build_bank_network:small", "--layer", "1", "--image-size", "32"]
    return ["birds", *network, "--batch-size", "3", "--quiet"]


def one_of_the_processes(environment, options):
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(f"told-{environment['RANK']}.txt", "w") as told, redirect_stdout(told):
        code = main(options)
    raise SystemExit(code)


def test_two_processes_write_the_bank_of_one(tmp_path, options, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert run_command(["bank", "build", *options, "--output", "one.bank"]) == 0
    torch.set_num_threads(threads)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    monkeypatch.setenv("PYTHONPATH", f"{Path(captum_embed.__file__).parents[1]}:{tmp_path}")
    # As torchrun does, whose own start takes longer than the build.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["captum_embed.weight_bank.build"])
    processes = [
        context.Process(
            target=one_of_the_processes,
            args=({**told, "RANK": rank, "LOCAL_RANK": rank}, [*options, "--output", "two.bank"]),
        )
        for rank in "01"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert "entries" in Path("told-0.txt").read_text()
    assert Path("told-1.txt").read_text() == ""
    one, two = WeightBank.load("one.bank"), WeightBank.load("two.bank")
    assert torch.equal(one.embeddings, two.embeddings)
    assert torch.equal(one.weights, two.weights)
    assert one.labels is not None
    assert one.labels.equal(two.labels)
    assert one.keys == two.keys
    assert one.metadata == two.metadata
    assert len(list(Path("two.bank").glob("*.safetensors"))) == 2


def test_one_process_is_the_command(options, capsys):
    assert main([*options, "--output", "alone.bank"]) == 0
    assert "entries" in capsys.readouterr().out
    assert len(WeightBank.load("alone.bank")) == 10
