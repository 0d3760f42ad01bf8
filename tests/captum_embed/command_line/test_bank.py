import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_embed import TripletForward, WeightBank, build_weight_bank
from captum_embed.command_line.images import ImageFolder
from captum_embed.command_line.main import main
from captum_embed.command_line.networks import load_network

from .conftest import TINY, draw


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def build(capsys: pytest.CaptureFixture[str], folder: str, output: str, *words: str) -> Any:
    return printed(capsys, "bank", "build", folder, *TINY, "--output", output, *words)


def test_a_bank_of_a_folder_is_the_librarys(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = build(capsys, "birds", "birds.bank")
    network = load_network("cli_tiny_networks:small", device="cpu")
    folder = ImageFolder("birds", network.preprocessing.replaced(image_size=32))
    forward = TripletForward(network.encoder)
    expected = build_weight_bank(forward, network.encoder[1], folder, progress=False)
    bank = WeightBank.load("birds.bank")
    torch.testing.assert_close(bank.weights, expected.weights)
    assert bank.keys == expected.keys
    assert bank.keys is not None
    assert bank.keys[0] == "jay/0.png"
    assert (facts["entries"], facts["classes"], facts["layer"]) == (6, ["jay", "wren"], "1")
    assert facts["explains"] == "match"
    assert main(["bank", "info", "birds.bank"]) == 0
    assert re.search(rf"^bytes +{facts['bytes']:,}$", capsys.readouterr().out, re.MULTILINE)


def test_options_reach_the_builder(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--explains", "loss", "--recipe", "paper", "--distance", "cosine", "--margin", "9")
    facts = build(capsys, "birds", "b", *words, "--num-tuples", "2", "--seed", "5")
    wanted = {
        "explains": "loss", "recipe": "paper", "distance": "cosine", "margin": "9.0",
        "mining": "hardest", "num_tuples": "2", "seed": "5",
    }  # fmt: skip
    assert {name: facts[name] for name in wanted} == wanted


def test_a_bank_is_replaced_by_force_alone(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(capsys, "birds", "b")
    words = ["bank", "build", "birds", *TINY, "--output"]
    assert main([*words, "b"]) == 1
    assert main([*words, "b", "--force"]) == 0
    assert main([*words, "birds", "--force"]) == 1
    assert "no weight bank" in capsys.readouterr().err


def test_folders_that_make_no_bank_are_refused(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(birds / "single" / "jay" / "1.png", 1)
    draw(birds / "lone" / "jay" / "1.png", 1)
    draw(birds / "lone" / "wren" / "1.png", 2)
    draw(birds / "lone" / "wren" / "2.png", 2)
    draw(birds / "flat" / "1.png", 1)
    for folder, message in (
        ("single", "alone"), ("lone", "the class jay of lone has one image"),
        ("flat", "one folder for each class"), ("absent", "no folder"), ("hit.png", "no folder"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(["bank", "build", folder, *TINY, "--output", "b"]) == 1
        assert message in capsys.readouterr().err
        assert not (birds / "b").exists()


def test_verify_finds_a_byte_that_changed(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(capsys, "birds", "b")
    assert printed(capsys, "bank", "verify", "b")[0]["entries"] == 6
    (shard,) = (birds / "b").glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    assert main(["bank", "verify", "b"]) == 1
    assert "error: " in capsys.readouterr().err
    assert main(["bank", "verify", "absent"]) == 1
    assert main(["bank", "info", "birds"]) == 1


def test_merging_keeps_classes_by_their_names(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        draw(birds / "more" / ("finch", "wren")[seed % 2] / f"{20 + seed}.png", 20 + seed)
    build(capsys, "birds", "a")
    build(capsys, "more", "b")
    facts = printed(capsys, "bank", "merge", "a", "b", "--output", "c")
    assert facts["classes"] == ["jay", "wren", "finch"]
    merged = WeightBank.load("c")
    assert merged.keys is not None
    assert merged.labels is not None
    named = [facts["classes"][label] for label in merged.labels.tolist()]
    assert named == [key.partition("/")[0] for key in merged.keys]
    assert main(["bank", "merge", "a", "b", "--output", "c"]) == 1
    assert main(["bank", "merge", "a", "a", "--output", "d"]) == 1
    assert "--prefix-keys" in capsys.readouterr().err
    shutil.copytree("a", "e")
    both = printed(capsys, "bank", "merge", "a", "e", "--output", "d", "--prefix-keys")
    assert both["entries"] == 12


def test_a_bank_is_made_compact_grows_and_shrinks_where_it_is(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        draw(birds / "more" / ("finch", "wren")[seed % 2] / f"{20 + seed}.png", 20 + seed)
    build(capsys, "birds", "a")
    build(capsys, "more", "b")
    smaller = ("--top-channels", "2", "--embeddings", "float16")
    for name in ("a", "b"):
        facts = printed(capsys, "bank", "merge", name, "--output", f"small.{name}", *smaller)
        assert (facts["top_channels"], facts["dtype"]) == (2, "float16")
    assert facts["embedding_dtype"] == "float16"
    assert facts["classes"] == ["finch", "wren"]
    dense, compact = (WeightBank.load(name) for name in ("b", "small.b"))
    assert torch.equal(compact.weights, dense.compact(2).weights)
    assert main(["bank", "merge", "a", "small.b", "--output", "c"]) == 1
    assert "compact" in capsys.readouterr().err
    before = {file: file.stat().st_ino for file in (birds / "small.a").glob("*.safetensors")}
    merge = ("bank", "merge", "small.a", "small.b", "--output", "small.a", "--force")
    facts = printed(capsys, *merge)
    assert (facts["entries"], facts["top_channels"], facts["dropped"]) == (10, 2, 0)
    assert all(file.stat().st_ino == inode for file, inode in before.items())
    facts = printed(capsys, "bank", "drop", "small.a", "wren", "jay/0.png")
    assert (facts["entries"], facts["dropped"]) == (4, 6)
    assert facts["classes"] == ["jay", "finch"], "a class without entries is not listed"
    left = WeightBank.load("small.a")
    assert left.keys == ("jay/2.png", "jay/4.png", "finch/20.png", "finch/22.png")
    assert main(["bank", "drop", "small.a", "sparrow"]) == 1
    assert "drop sparrow: the bank has no key" in capsys.readouterr().err
    # Its class has no entry any more.
    assert main(["bank", "drop", "small.a", "wren"]) == 1
    assert "drop wren: the bank has no key" in capsys.readouterr().err
    assert main(["bank", "merge", "b", "b", "--output", "c"]) == 1
    assert "is in b and in b; --prefix-keys" in capsys.readouterr().err


def test_banks_that_do_not_belong_together_are_not_merged(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(capsys, "birds", "a")
    build(capsys, "birds", "loss", "--explains", "loss")
    build(capsys, "birds", "whole", "--framing", "whole")
    a = WeightBank.load("a")
    metadata = {name: a.metadata[name] for name in a.metadata if name != "class_names"}
    keys = [f"more/{key}" for key in a.keys or ()]
    WeightBank(a.embeddings, a.weights, a.labels, keys, metadata).save("nameless")
    for other, message in (
        ("loss", "loss"), ("whole", "prepared in different ways"), ("nameless", "names of its cl"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(["bank", "merge", "a", other, "--output", "c", "--prefix-keys"]) == 1
        assert message in capsys.readouterr().err
    assert not (birds / "c").exists()


def test_neighbors_are_the_nearest_by_brute_force(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(capsys, "birds", "b")
    words = ("bank", "neighbors", "birds/jay/2.png", "--bank", "b", *TINY[:2], "--quiet")
    (record,) = printed(capsys, *words, "--neighbors", "6")
    bank = WeightBank.load("b")
    own = bank.embeddings[list(bank.keys or ()).index("jay/2.png")]
    distances = (bank.embeddings - own).square().sum(1).sqrt()
    order = distances.argsort().tolist()
    assert [one["index"] for one in record["neighbors"]] == order
    assert record["neighbors"][0]["key"] == "jay/2.png"
    for one in record["neighbors"]:
        assert one["distance"] == pytest.approx(distances[one["index"]].item(), abs=1e-3)
    (others,) = printed(capsys, *words, "--neighbors", "3", "--exclude", "jay")
    assert {one["class"] for one in others["neighbors"]} == {"wren"}
    assert main(list(words)) == 0
    text = capsys.readouterr().out
    assert "jay/2.png" in text.splitlines()[0]
    assert "0.0000" in text.splitlines()[1]


def test_the_command_itself(birds: Path) -> None:
    """As a person types it: a process of its own, its output and exit code."""
    words = [sys.executable, "-m", "captum_embed", "bank", "build", "birds", *TINY[:-1]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(
        [*words, "--output", "b"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "jay, wren" in done.stdout
    # Progress is no part of the output.
    assert "image" in done.stderr
    assert "%|" not in done.stdout
