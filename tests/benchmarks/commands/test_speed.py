"""The speed command: every ratio is there, and what it compares is said."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

from benchmarks.__main__ import main
from benchmarks.speed import banks, library, peers, scale
from benchmarks.speed.comparison import Setup, as_markdown, compared
from benchmarks.speed.measure import PARTS


def test_the_table_holds_every_ratio_and_its_command(tmp_path, capsys):
    words = ["speed", "--side", "32", "--turns", "1", "--entries", "500", "--images", "8"]
    assert main([*words, "--output", str(tmp_path), "--device", "cpu", "--no-progress"]) == 0
    results = json.loads((tmp_path / "speed.json").read_text())
    named = {ratio["what"] for ratio in results["ratios"]}
    assert "one map of 50 tuples" in named
    assert "search of 1024 queries in 500 entries" in named
    assert "search of 64 queries in 500 entries, all equal" in named
    assert "search of 64 queries in 500 entries, of 20 tight classes" in named
    (transfer,) = (
        r for r in results["ratios"] if r["what"] == "transfer from 500 entries, 16 images"
    )
    assert transfer["facts"]["times its peak memory"] > 0.5
    assert {ratio["part"] for ratio in results["ratios"]} == set(PARTS)
    assert all(
        (ratio["ratio"] or 0) > 0 if not ratio["missing"] else ratio["ratio"] is None
        for ratio in results["ratios"]
    )
    (flat,) = (r for r in results["ratios"] if r["what"] == "256 queries in 500 entries, flat")
    assert flat["facts"]["recall"] == 1
    assert flat["facts"]["queries per second"] == pytest.approx(256 / flat["seconds"])
    assert {"speed.png", "speed.svg", "speed.md"} <= {path.name for path in tmp_path.iterdir()}
    printed = capsys.readouterr().out
    assert results["command"] in printed
    assert all(what in printed for what in named)


def test_a_folder_that_cannot_be_made_is_refused_before_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["speed", "--output", str(tmp_path / "file"), "--no-progress"]) != 0
    assert "--output" in capsys.readouterr().err


def test_an_unknown_part_is_refused_with_those_there_are(tmp_path, capsys):
    assert main(["speed", "--parts", "sums", "--output", str(tmp_path)]) != 0
    assert "unknown part sums; known: transfer" in capsys.readouterr().err


@pytest.fixture
def setup() -> Setup:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 512, 3)
    pool, flat = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    encoder = torch.nn.Sequential(layer, torch.nn.ReLU(), pool, flat).requires_grad_(False).eval()
    return Setup(
        encoder=encoder,
        layer=layer,
        images=torch.rand(2, 3, 16, 16),
        entries=1000,
        num_anchors=20,
        num_images=2,
        device=torch.device("cpu"),
    )


class Watched(torch.nn.Conv2d):
    """Notes how its weights lie in memory, and what it puts out."""

    seen: ClassVar[set[tuple[bool, torch.dtype]]] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = super().forward(images)
        last = self.weight.is_contiguous(memory_format=torch.channels_last)
        self.seen.add((last, output.dtype))
        return output


def test_transfer_and_the_pass_run_in_the_kind_that_is_named(setup: Setup) -> None:
    layer = Watched(3, 512, 3).requires_grad_(False)
    setup = replace(setup, encoder=torch.nn.Sequential(layer, *setup.encoder[1:]), layer=layer)
    for pair in library.transfer(setup):
        expected = ("channels last" in pair.what, torch.float32)
        if "autocast" in pair.what:
            expected = (False, torch.bfloat16)
        for run in (pair.ours, pair.theirs):
            assert run is not None
            Watched.seen.clear()
            run()
            assert Watched.seen == {expected}


def test_as_many_anchors_are_mined_for_as_are_told(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    mined = []
    mine = scale.mine_tuples

    def noted(*args, **settings):
        mined.append(len(settings["anchors"]))
        return mine(*args, **settings)

    monkeypatch.setattr(scale, "mine_tuples", noted)
    list(scale.mining(replace(setup, num_anchors=7)))
    assert mined == [7]


def test_what_is_not_installed_has_a_row_that_says_how(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(banks, "NO_FAISS", "pip install faiss-cpu")
    rows = [
        compared("part", pair, 1, setup.device)
        for make in (peers.peers, banks.index)
        for pair in make(setup)
    ]
    assert len(rows) == 5
    assert all(row.ratio is None and row.seconds is None for row in rows)
    table = as_markdown(rows, {}, "command")
    assert table.count("pip install grad-cam torchcam faiss-cpu") == 4
    assert table.count("pip install faiss-cpu") == 1


@pytest.mark.parametrize(
    ("package", "named"),
    [
        ("captum", "Captum's"),
        ("torchcam", "TorchCAM's"),
        ("pytorch_grad_cam", "pytorch-grad-cam's"),
    ],
)
def test_peers_are_asked_the_same_question(setup: Setup, package: str, named: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (pair,) = (
        one
        for one in peers.peers(setup)
        if (one.what, one.against) == ("Grad-CAM of a similarity", named)
    )
    assert pair.ours is not None
    assert pair.theirs is not None
    ours, theirs = pair.ours().clamp(min=0), pair.theirs()
    while not hasattr(theirs, "shape"):
        theirs = theirs[0]
    shown = torch.as_tensor(theirs).detach()
    shown = shown.reshape(1, 1, *shown.shape[-2:]).clamp(min=0)
    if shown.shape != ours.shape:
        # It resizes its maps to the image.
        ours = F.interpolate(ours, shown.shape[-2:], mode="bilinear")
    both = torch.stack([shown.flatten(), ours.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99


def test_recall_is_that_of_the_neighbours(setup: Setup) -> None:
    rows = banks.clustered(1000, 16)
    assert rows.norm(dim=1).allclose(torch.ones(1000))
    nearest = torch.cdist(rows[:20], rows).topk(10, largest=False).indices
    assert banks.recall(nearest.flip(1), nearest) == 1
    assert banks.recall(nearest[:, :5].repeat(1, 2), nearest) == 1
    missed = torch.cat([nearest[:, :7], torch.full((20, 3), -1)], 1)
    assert banks.recall(missed, nearest) == pytest.approx(0.7)


def test_what_is_opened_is_the_bank_whose_size_is_told(setup: Setup) -> None:
    (opening,) = scale.opening(setup)
    # The folder of the bank is there while the row is made, and no longer.
    for pair in scale.opening(setup):
        assert pair.ours is not None
        assert len(pair.ours()) == 1000
    row = 1000 * (512 + scale.OPENED_WEIGHTS) * 2 + 1000 * (8 + 8 + len("photographs/100.jpg"))
    assert opening.facts["MB"] == pytest.approx(row / 1e6, rel=0.01)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_is_what_a_task_takes_at_most() -> None:
    _, megabytes = scale.measured(lambda: torch.ones(30_000_000).sum())
    assert megabytes == pytest.approx(120, rel=0.1)
    assert scale.measured(lambda: None)[1] < 10


def test_sizes_are_powers_of_ten_up_to_the_largest_bank(setup: Setup) -> None:
    assert scale.sizes(replace(setup, entries=20_000)) == [1000, 10_000]
    assert scale.sizes(replace(setup, entries=500)) == [500]
    (mined,) = scale.mining(replace(setup, entries=200))
    assert mined.facts["ratio"] == pytest.approx(mined.facts["ms hardest"] / mined.facts["ms all"])
