"""Banks built by several processes, and resumed, against the bank of one process in one go.

This file is run once more in each of the processes.
"""

import multiprocessing
import os
import runpy
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

import captum_embed
from captum_embed import (
    LossForward,
    PairForward,
    QuadrupletForward,
    TripletForward,
    WeightBank,
    build_weight_bank,
)
from captum_embed.errors import BankFileError, InputError, ProcessError
from captum_embed.weight_bank import build_job

SIZES = [(3, 8, 8), (3, 8, 10)]


class Encoder(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.below, self.layer = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 5, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 2

    def forward(self, images):
        pooled = self.layer(self.below(images).tanh()).relu().mean((2, 3))
        return F.normalize(self.head(pooled))


class Images(torch.utils.data.Dataset):
    """Reading image ``fails_at`` calls ``fail``; counts what is read."""

    def __init__(self, count=23, sizes=SIZES, fails_at=None, fail=None):
        generator = torch.Generator().manual_seed(7)
        self.items = [
            (torch.rand(sizes[i % len(sizes)], generator=generator), i % 3) for i in range(count)
        ]
        self.targets = [label for _, label in self.items]
        self.fails_at, self.fail, self.read = fails_at, fail, []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.fails_at:
            self.fail()
        return self.items[index]


def refuse():
    raise ValueError("this image is broken")


def proxy_loss(embeddings, labels):
    return F.cross_entropy(embeddings @ torch.eye(5)[:3].T, labels, reduction="none")


CASES = {
    "all": lambda net: (TripletForward(net), {}),
    "pairs": lambda net: (PairForward(net, distance="cosine"), {"activation_budget": 0}),
    "hardest": lambda net: (
        TripletForward(net, margin=0.3),
        {"mining": "hardest", "num_tuples": 3, "reference_pool": 12},
    ),
    "random": lambda net: (QuadrupletForward(net), {"mining": "random", "num_tuples": 4}),
    "batches": lambda net: (LossForward(net, proxy_loss), {}),
}


def build(case, dataset=None, several=False, **settings):
    net = Encoder().eval()
    forward, options = CASES[case](net)
    if dataset is None:
        dataset = Images(sizes=SIZES[:1] if case == "batches" else SIZES)
    layer = [net.layer, net.below] if several else net.layer
    options = {"batch_size": 4, "progress": False, **options, **settings}
    keys = [f"image{i}" for i in range(len(dataset))]
    return build_weight_bank(forward, layer, dataset, keys=keys, **options)


def require_equal(bank, expected):
    assert torch.equal(bank.embeddings, expected.embeddings)
    assert torch.equal(bank.weights, expected.weights)
    assert torch.equal(bank.labels, expected.labels)
    assert bank.keys == expected.keys
    assert dict(bank.metadata) == dict(expected.metadata)


def work(rank, count, folder):
    """What one of the processes does."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    for case in CASES:
        require_equal(build(case), WeightBank.load(folder / f"{case}.expected"))
        require_equal(
            build(case, path=folder / f"{case}.bank"), WeightBank.load(folder / f"{case}.expected")
        )
    paths = [folder / "layer.bank", folder / "below.bank"]
    first, second = build("all", several=True, path=paths)
    require_equal(first, WeightBank.load(folder / "all.expected"))
    assert second.metadata["layer"] == "below"
    # Fewer images than one each.
    few = build("all", Images(6), batch_size=3 if count == 2 else 6)
    assert len(few) == 6
    few = build("all", Images(6), batch_size=6, path=folder / "few.bank")
    assert len(few) == 6

    with pytest.raises(InputError, match="start all of them with the same"):
        build("all", seed=rank)

    broken = Images(fails_at=22, fail=refuse)
    last = rank == count - 1
    with pytest.raises(ValueError if last else ProcessError, match="this image is broken"):
        build("all", broken, path=folder / "resumed.bank")
    again = Images()
    resumed = build("all", again, path=folder / "resumed.bank", activation_budget=0)
    require_equal(resumed, WeightBank.load(folder / "all.expected"))
    # The others' embeddings were there: they read their images for the gradients alone.
    own = set(range(20, 23)) if last else set()
    assert all(again.read.count(i) == 1 for i in set(again.read) - own - {20, 21, 22})
    assert not list(folder.glob("*.building"))

    dying = Images(fails_at=22, fail=lambda: os._exit(9))
    with pytest.raises(ProcessError, match="ended, or does not answer"):
        build("all", dying, path=folder / "died.bank")


@pytest.mark.parametrize("count", [2, 3])
def test_processes_build_the_bank_of_one(tmp_path, monkeypatch, count):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {case: build(case) for case in CASES}
        for case, bank in expected.items():
            bank.save(tmp_path / f"{case}.expected")
        # Started from a server that has imported everything: that takes most of the time.
        monkeypatch.setenv("PYTHONPATH", str(Path(captum_embed.__file__).parents[1]))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["captum_embed.weight_bank.build"])
        processes = [
            context.Process(
                target=runpy.run_path,
                args=(__file__, {"WORK": (rank, count, str(tmp_path))}, "one_of_the_processes"),
            )
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * (count - 1) + [9]
        # One shard for each process that has entries, and no file besides the manifest's.
        bank = tmp_path / "all.bank"
        assert len(list(bank.glob("*.safetensors"))) == count
        # Another number of processes goes on where those that died were.
        assert not (tmp_path / "died.bank").exists()
        images = Images()
        require_equal(build("all", images, path=tmp_path / "died.bank"), expected["all"])
        assert len(images.read) < 2 * len(images)
    finally:
        torch.set_num_threads(threads)


def test_an_interrupted_build_goes_on_and_gives_the_same_bank(tmp_path):
    def stop():
        raise KeyboardInterrupt

    path, expected = tmp_path / "bank", build("all")
    interrupted = Images(fails_at=17, fail=stop)
    with pytest.raises(KeyboardInterrupt):
        build("all", interrupted, path=path)
    assert not path.exists()
    unfinished = Images()
    resumed = build("all", unfinished, path=path, activation_budget=0)
    require_equal(resumed, expected)
    # Sixteen were embedded; all are needed for their gradients.
    assert sorted(unfinished.read) == sorted([*range(16, 23), *range(23)])
    assert not path.with_name("bank.building").exists()
    finished = Images()
    require_equal(build("all", finished, path=path), expected)
    assert len(finished.read) == 23  # A build that is done is none to go on with.


def test_gradients_that_were_taken_are_not_taken_again(tmp_path):
    def stop():
        if images.read.count(17) == 2:
            raise KeyboardInterrupt

    images = Images(fails_at=17, fail=stop)
    with pytest.raises(KeyboardInterrupt):
        build("hardest", images, path=tmp_path / "bank", activation_budget=0)
    rest = Images()
    bank = build("hardest", rest, path=tmp_path / "bank", activation_budget=0)
    require_equal(bank, build("hardest", activation_budget=0))
    assert rest.read
    assert min(rest.read) >= 16


def test_other_settings_start_anew(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("all", Images(fails_at=17, fail=stop), path=tmp_path / "bank")
    with pytest.warns(UserWarning, match="is started anew"):
        bank = build("pairs", path=tmp_path / "bank")
    require_equal(bank, build("pairs"))


def test_a_file_that_is_not_whole_is_done_again(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("all", Images(fails_at=17, fail=stop), path=tmp_path / "bank")
    (written,) = (tmp_path / "bank.building").glob("embeddings-*")
    assert len(load_file(written)["indices"]) == 16
    written.write_bytes(written.read_bytes()[:-10])
    require_equal(build("all", path=tmp_path / "bank"), build("all"))


def test_a_full_disk_ends_a_build_that_goes_on_with_more_room(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    images = Images()
    monkeypatch.setattr(build_job, "save_file", full)
    with pytest.raises(BankFileError, match=r"cannot write .*No space left.* make room"):
        build("all", images, path=tmp_path / "bank")
    monkeypatch.undo()
    require_equal(build("all", path=tmp_path / "bank"), build("all"))


def test_what_cannot_be_saved_or_resumed_is_refused_before_work_starts(tmp_path):
    images = Images()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not a weight bank's"):
        build("all", images, path=tmp_path / "taken")
    for path in ([tmp_path / "a"], [tmp_path / "a", tmp_path / "a"], tmp_path / "a"):
        with pytest.raises(InputError, match="a directory for each"):
            build("all", images, several=True, path=path)
    for path in ("a\0b", 3, b"a"):
        with pytest.raises(InputError, match="the path of a weight bank is"):
            build("all", images, path=path)
    with pytest.raises(BankFileError, match=r"cannot write .* give another path"):
        build("all", images, path=tmp_path / "taken" / "note.txt" / "bank")

    class Endless:
        def __iter__(self):
            return iter(images.items)

    net = Encoder().eval()
    with pytest.raises(InputError, match="does not tell its length"):
        build_weight_bank(
            TripletForward(net), net.layer, Endless(), path=tmp_path / "bank", progress=False
        )
    assert images.read == []


if __name__ == "one_of_the_processes":
    rank, count, folder = WORK  # noqa: F821
    work(rank, count, Path(folder))
