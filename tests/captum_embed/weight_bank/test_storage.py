"""What a bank saves comes back as it was, and what is no bank stays as it is."""

import hashlib
import json
import os
import pickle
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank import WeightBank

from .conftest import FACTS, assert_equal, make_bank, shard

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    shard=st.integers(1, 500),
    dtype=st.sampled_from(DTYPES),
    labels=st.booleans(),
    keys=st.none() | st.integers(0, 5),
    compact=st.none() | st.integers(1, 7),
    mmap=st.booleans(),
    verify=st.booleans(),
)
def test_a_bank_comes_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    shard: int,
    dtype: torch.dtype,
    labels: bool,
    keys: int | None,
    compact: int | None,
    mmap: bool,
    verify: bool,
) -> None:
    bank = make_bank(
        count,
        labels=list(range(-1, count - 1)) if labels else None,
        keys=None if keys is None else [f"{'né' * keys}{i}" for i in range(count)],
        metadata={},
    ).to(dtype)
    if compact is not None:
        bank = bank.compact(compact)
    path = tmp_path_factory.mktemp("banks") / "bank"
    bank.save(path, max_shard_size=shard)
    assert_equal(WeightBank.load(path, mmap=mmap, verify=verify), bank)


def test_metadata_and_manifest_say_what_the_bank_is(saved: Path) -> None:
    assert dict(WeightBank.load(saved).metadata) == dict(make_bank().metadata)
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format"] == "captum_embed.weight_bank"
    assert manifest["version"] == 3
    assert {name: manifest[name] for name in FACTS} == FACTS
    assert (manifest["num_entries"], manifest["embedding_dim"], manifest["num_channels"]) == (
        10,
        4,
        6,
    )
    assert manifest["library_versions"]["torch"] == torch.__version__.split("+")[0] or (
        manifest["library_versions"]["torch"] == torch.__version__
    )
    for record in manifest["shards"]:
        content = (saved / record["file"]).read_bytes()
        assert record["num_bytes"] == len(content)
        assert record["sha256"] == hashlib.sha256(content).hexdigest()
        assert record["file"] == f"bank-{record['sha256'][:16]}.safetensors"


def test_any_reader_of_safetensors_can_read_a_shard(saved: Path) -> None:
    tensors = load_file(shard(saved, 0))
    count = len(tensors["embeddings"])
    assert torch.equal(tensors["embeddings"], make_bank().embeddings[:count])
    ends = tensors["key_ends"].tolist()
    text = bytes(tensors["keys"].tolist())
    assert text[ends[0] : ends[1]].decode() == "vogel/größe 1.jpg"


def test_shards_of_a_loaded_bank_search_and_transfer_as_the_whole(saved: Path) -> None:
    bank, loaded = make_bank(), WeightBank.load(saved)
    queries = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(loaded.search(queries, 6), bank.search(queries, 6), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(loaded.transfer(queries, 3), bank.transfer(queries, 3))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_mmap_leaves_the_entries_in_the_files_and_otherwise_nothing_stays_mapped(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bank"
    WeightBank(torch.randn(1000, 64), torch.randn(1000, 256)).save(path)
    in_memory = WeightBank.load(path, mmap=False)
    assert str(path) not in Path("/proc/self/maps").read_text()
    mapped = WeightBank.load(path, mmap=True)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert_equal(mapped, in_memory)


def test_a_bank_can_be_saved_over_the_files_it_is_mapped_from(saved: Path) -> None:
    WeightBank.load(saved).to(torch.float64).save(saved)
    assert_equal(WeightBank.load(saved), make_bank().to(torch.float64))
    assert len(os.listdir(saved)) == 2
    assert os.listdir(saved.parent) == ["bank"]


def test_embeddings_that_are_the_weights_can_be_saved(tmp_path: Path) -> None:
    both = torch.randn(4, 3)
    bank = WeightBank(both, both)
    bank.save(tmp_path / "bank")
    assert_equal(WeightBank.load(tmp_path / "bank"), bank)


def test_files_are_as_readable_as_the_user_asked_for(saved: Path) -> None:
    (saved.parent / "plain").write_text("")
    expected = stat.S_IMODE((saved.parent / "plain").stat().st_mode)
    assert {stat.S_IMODE(file.stat().st_mode) for file in saved.iterdir()} == {expected}


def test_missing_folders_on_the_way_are_made(tmp_path: Path) -> None:
    make_bank().save(tmp_path / "runs" / "today" / "bank")
    assert len(WeightBank.load(tmp_path / "runs" / "today" / "bank")) == 10


def test_a_link_to_a_bank_is_followed(saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to(saved)
    make_bank(3, seed=5).save(link)
    assert link.is_symlink()
    assert len(WeightBank.load(saved)) == 3


@pytest.mark.parametrize(
    ("size", "shards"), [("1GB", 1), ("0.35KB", 3), ("350", 3), (1, 10), ("1 mb", 1)]
)
def test_shard_size_is_bytes_or_a_string(tmp_path: Path, size: Any, shards: int) -> None:
    make_bank().save(tmp_path / "bank", max_shard_size=size)
    assert len(list(tmp_path.glob("bank/*.safetensors"))) == shards


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "large", "-1GB", "", None])
def test_refuses_shard_sizes_that_are_none(tmp_path: Path, size: Any) -> None:
    with pytest.raises(InputError, match="max_shard_size is"):
        make_bank().save(tmp_path / "bank", max_shard_size=size)
    assert os.listdir(tmp_path) == []


def test_entries_added_to_a_bank_leave_its_files_alone(saved: Path) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in saved.glob("*.safetensors")}
    more = make_bank(4, seed=5, keys=[f"more {i}" for i in range(4)])
    joined = WeightBank.concat([WeightBank.load(saved), more])
    joined.save(saved)
    after = {file.name: file.stat().st_mtime_ns for file in saved.glob("*.safetensors")}
    assert len(after) == 4
    assert before.items() <= after.items()
    assert_equal(WeightBank.load(saved), joined)


def test_entries_dropped_from_a_bank_leave_its_files_alone(saved: Path) -> None:
    bank = WeightBank.load(saved)
    before = {file.name: file.stat().st_ino for file in saved.glob("*.safetensors")}
    kept = bank[[index for index in range(10) if index != 4]]
    kept.save(saved)
    after = {file.name: file.stat().st_ino for file in saved.glob("*.safetensors")}
    assert after == before
    assert_equal(WeightBank.load(saved), kept)
    kept.save(saved.parent / "elsewhere")
    assert_equal(WeightBank.load(saved.parent / "elsewhere"), kept)


def test_shards_of_equal_content_are_one_file(tmp_path: Path) -> None:
    bank = WeightBank(torch.ones(3, 4), torch.ones(3, 6))
    bank.save(tmp_path / "bank", max_shard_size=1)
    assert len(os.listdir(tmp_path / "bank")) == 2
    loaded = WeightBank.load(tmp_path / "bank")
    assert_equal(loaded, bank)
    WeightBank.concat([loaded, loaded, bank]).save(tmp_path / "bank")
    assert len(WeightBank.load(tmp_path / "bank")) == 9


@pytest.mark.parametrize("name", ["embeddings", "weights", "labels"])
def test_what_was_changed_in_place_is_written(tmp_path: Path, name: str) -> None:
    make_bank().save(tmp_path / "bank")
    bank = WeightBank.load(tmp_path / "bank")
    getattr(bank, name)[3] = 7
    bank.save(tmp_path / "bank")
    assert_equal(WeightBank.load(tmp_path / "bank"), bank)
    assert not torch.equal(getattr(bank, name), getattr(make_bank(), name))


def test_other_names_or_precision_are_written_anew(saved: Path) -> None:
    bank = WeightBank.load(saved)
    for changed in (
        bank.to(torch.float64),
        WeightBank.concat([bank], keys=[f"new {i}" for i in range(10)]),
    ):
        changed.save(saved.parent / "other")
        assert_equal(WeightBank.load(saved.parent / "other"), changed)


def test_refuses_to_overwrite_what_is_not_a_bank(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    foreign = tmp_path / "website"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"name": "a web app"}')
    mixed = tmp_path / "mixed"
    make_bank().save(mixed)
    (mixed / "notes.txt").write_text("precious")
    for path, message in (
        (file, "is a file"),
        (folder, "notes.txt"),
        (foreign, "not an intact weight bank"),
        (mixed, "notes.txt"),
    ):
        with pytest.raises(InputError, match=message):
            make_bank().save(path)
    assert file.read_text() == (folder / "notes.txt").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "mixed", "website"]


def test_a_manifest_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "bank" / "manifest.json").mkdir(parents=True)
    with pytest.raises(BankFileError, match=r"manifest\.json cannot be read \(Is a directory\)"):
        WeightBank.load(tmp_path / "bank")
    with pytest.raises(InputError, match=r"not an intact weight bank.*Is a directory"):
        make_bank().save(tmp_path / "bank")


@pytest.mark.parametrize("path", ["a\0b", Path("c") / "\0", b"bytes", 3, None, "\udcff"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    message = "the path of a weight bank is .*; expected a directory"
    for work in (make_bank().save, WeightBank.load, make_bank().append_to):
        with pytest.raises(InputError, match=message):
            work(path)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    make_bank().save(tmp_path / "bank")
    assert len(WeightBank.load(tmp_path / "bank")) == 10


def test_nothing_is_pickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)
    WeightBank.load(saved).save(saved)
    assert_equal(WeightBank.load(saved, mmap=False), make_bank())
    sources = Path(sys.modules["captum_embed.weight_bank"].__file__ or "").parent.glob("*.py")
    assert not [file for file in sources if "import pickle" in file.read_text()]
