import collections
import errno
import hashlib
import itertools
import json
import os
import pickle
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save

import captum_embed.weight_bank.files as bank_files
import captum_embed.weight_bank.storage as storage
from captum_embed.errors import BankFileError, InputError
from captum_embed.weight_bank import WeightBank

from .conftest import (
    assert_equal,
    dying_at,
    exit_code,
    flip_a_bit,
    in_another_process,
    needs_fork,
    rewrite,
    shard,
    truncate,
)

FACTS = {
    "layer": "features",
    "encoder_fingerprint": "ab" * 32,
    "explains": "match",
    "layout": "channels_first",
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make_bank(count: int = 10, seed: int = 0, **arguments: Any) -> WeightBank:
    generator = torch.Generator().manual_seed(seed)
    defaults = {
        "labels": [i % 3 for i in range(count)],
        "keys": [f"vogel/größe {i}.jpg" for i in range(count)],
        "metadata": {**FACTS, "seed": "0"},
    }
    return WeightBank(
        torch.randn(count, 4, generator=generator),
        torch.randn(count, 6, generator=generator),
        **{**defaults, **arguments},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bank of three shards."""
    path = tmp_path / "bank"
    make_bank().save(path, max_shard_size=350)
    assert len(list(path.glob("*.safetensors"))) == 3
    return path


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


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), BankFileError),
        (SafetensorError("I/O error: No space left on device"), BankFileError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("failing", ["save_file", "sha256", "fsync", "replace"])
def test_a_save_that_fails_leaves_nothing_new_and_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    exists: bool,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    path = tmp_path / "bank"
    earlier = make_bank(4, seed=9)
    if exists:
        earlier.save(path)
    files = sorted(path.glob("*"))
    owner = {"save_file": bank_files, "sha256": hashlib}.get(failing, os)
    real, calls = getattr(owner, failing), []

    def fail_at_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, failing, fail_at_the_second)
    with pytest.raises(raised, match="No space left" if raised is BankFileError else None):
        make_bank().save(path, max_shard_size=350)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == (["bank"] if exists else [])
    assert sorted(path.glob("*")) == files
    if exists:
        assert_equal(WeightBank.load(path), earlier)


@needs_fork
def test_a_file_that_the_system_refuses_is_an_error_that_says_so(saved: Path) -> None:
    def save() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(BankFileError, match=r"File too large.*is unchanged"):
            WeightBank(torch.randn(500, 64), torch.randn(500, 64)).save(saved)

    assert exit_code(in_another_process(save)) == 0
    assert_equal(WeightBank.load(saved), make_bank())
    assert len(os.listdir(saved)) == 4


@needs_fork
@pytest.mark.parametrize("exists", [False, True])
def test_killed_at_any_point_leaves_the_old_bank_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """Every call that changes the disk is the last one of some process."""
    path = tmp_path / "bank"

    def save(step: int) -> None:
        dying_at(step, monkeypatch)
        make_bank(5).save(path, max_shard_size=200)

    counts = []
    for step in itertools.count(1):
        shutil.rmtree(path, ignore_errors=True)
        if exists:
            make_bank(9).save(path, max_shard_size=200)
        code = exit_code(in_another_process(lambda step=step: save(step)))  # type: ignore[misc]
        complete = exists or (path / "manifest.json").exists()
        counts.append(len(WeightBank.load(path)) if complete else 0)
        # Whatever was left, the next save goes through and tidies up.
        make_bank(2).save(path)
        assert_equal(WeightBank.load(path), make_bank(2))
        assert len(os.listdir(path)) == 2
        assert os.listdir(tmp_path) == ["bank"]
        if code == 0:
            break
        assert code == 9
    assert len(counts) > 15
    assert set(counts) == {9 if exists else 0, 5}
    assert counts == sorted(counts, reverse=exists)


@needs_fork
def test_a_reader_sees_the_old_bank_or_the_new_one_while_they_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    banks = [make_bank(6, seed=1), make_bank(9, seed=2)]
    banks[0].save(path)

    def write() -> None:
        for bank in itertools.cycle(banks):
            bank.save(path, max_shard_size=200)

    writer = in_another_process(write)
    try:
        seen = collections.Counter[int]()
        for number in range(int(os.environ.get("BANK_LOADS", 300))):
            loaded = WeightBank.load(path, mmap=number % 2 == 0)
            assert_equal(loaded, banks[len(loaded) == 9])
            seen[len(loaded)] += 1
    finally:
        os.kill(writer, signal.SIGKILL)
        assert exit_code(writer) == -signal.SIGKILL
    assert set(seen) == {6, 9}
    assert len(WeightBank.load(path)) in seen


@needs_fork
def test_savers_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "bank"
    banks = [make_bank(count, seed=count) for count in (4, 5, 6)]
    savers = [
        in_another_process(lambda bank=bank: [bank.save(path, 150) for _ in range(15)])  # type: ignore[misc]
        for bank in banks
    ]
    assert [exit_code(saver) for saver in savers] == [0, 0, 0]
    loaded = WeightBank.load(path)
    assert_equal(loaded, banks[len(loaded) - 4])
    assert len(os.listdir(path)) == 1 + len(
        json.loads((path / "manifest.json").read_text())["shards"]
    )
    assert os.listdir(path.parent) == ["bank"]


def test_savers_in_threads_take_turns_and_one_that_fails_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bank"
    real = bank_files.save_file

    def save_file(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        if len(tensors["embeddings"]) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, *args, **kwargs)

    monkeypatch.setattr(bank_files, "save_file", save_file)

    def attempt(number: int) -> str:
        try:
            make_bank(7 if number % 2 else 3).save(path)
        except BankFileError:
            return "refused"
        return "saved"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, range(24)))
    assert results == ["saved", "refused"] * 12
    assert_equal(WeightBank.load(path), make_bank(3))
    assert len(os.listdir(path)) == 2


def test_a_saver_that_never_ends_is_an_error_that_names_the_lock(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_LOCK_SECONDS", 0.05)
    with FileLock(saved / ".lock"), pytest.raises(BankFileError, match=r"another saver.*\.lock"):
        make_bank(3).save(saved)
    assert_equal(WeightBank.load(saved), make_bank())


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


def test_a_bank_of_version_2_loads(saved: Path) -> None:
    def to_version_2(manifest: dict[str, Any]) -> None:
        manifest["version"] = 2
        del manifest["top_channels"]
        for record in manifest["shards"]:
            del record["dropped"]

    rewrite(saved, to_version_2)
    assert_equal(WeightBank.load(saved), make_bank())
    WeightBank.drop_from(saved, [2])
    assert_equal(WeightBank.load(saved), make_bank()[make_bank().labels != 2])


def test_a_bank_of_version_1_loads_and_explains_the_loss(saved: Path) -> None:
    def to_version_1(manifest: dict[str, Any]) -> None:
        manifest["version"] = 1
        del manifest["explains"], manifest["layout"]
        for number, record in enumerate(manifest["shards"], 1):
            file = f"bank-{number:05d}-of-00003.safetensors"
            (saved / record["file"]).rename(saved / file)
            record["file"] = file

    rewrite(saved, to_version_1)
    old = WeightBank.load(saved)
    assert old.metadata["explains"] == "loss"
    assert "layout" not in old.metadata
    old.save(saved)
    assert_equal(WeightBank.load(saved), old)
    assert not list(saved.glob("*-of-*"))


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


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    make_bank().save(tmp_path / "bank")
    assert len(WeightBank.load(tmp_path / "bank")) == 10


SHARD = r"bank-[0-9a-f]{16}\.safetensors"


def lengthen(path: Path) -> None:
    with shard(path).open("ab") as file:
        file.write(b"\0")


def swap(path: Path) -> None:
    shard(path, 0).rename(path / "other")
    shard(path, 1).rename(shard(path, 0))
    (path / "other").rename(shard(path, 1))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shard(path).unlink(), f"{SHARD} is missing"),
        (truncate, rf"{SHARD} is truncated: it has \d+ bytes of \d+"),
        (lengthen, f"{SHARD} was altered"),
        (flip_a_bit, f"{SHARD} was altered: its SHA-256"),
        (swap, f"{SHARD} was altered"),
        (lambda path: (path / "manifest.json").unlink(), "no manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe"), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[" * 10**5), "is not JSON"),
        (lambda path: (path / "manifest.json").write_text("[]"), "not the manifest of a weight"),
        (lambda path: (path / "manifest.json").write_text('{"format": 3}'), "not the manifest"),
    ],
)
def test_damaged_files_are_named(
    saved: Path, damage: Callable[[Path], None], message: str, mmap: bool
) -> None:
    damage(saved)
    with pytest.raises(BankFileError, match=message):
        WeightBank.load(saved, mmap=mmap)


@settings(max_examples=int(os.environ.get("BANK_FLIPS", 60)), deadline=None)
@given(st.data())
def test_no_single_byte_of_any_file_can_change_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("banks") / "bank"
    make_bank(3).save(path)
    file = path / data.draw(st.sampled_from(sorted(os.listdir(path))))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    byte = (content[place] + data.draw(st.integers(1, 255))) % 256
    # One blank of the manifest is as good as another.
    assume(not (chr(byte).isspace() and chr(content[place]).isspace()))
    content[place] = byte
    file.write_bytes(content)
    with pytest.raises(BankFileError, match=file.name):
        WeightBank.load(path)


def set_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest.__setitem__(name, value)


def set_shard(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["shards"][1].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("version", 4), "format version 4.*reads 1 to 3; upgrade"),
        (set_field("version", True), "format version True"),
        (set_field("explains", 3), "'explains' is 3"),
        (set_field("version", "1"), "format version '1'"),
        (set_field("version", None), "format version None"),
        (set_field("num_entries", 11), "announces 11 entries, and its shards hold 10"),
        (set_field("num_entries", True), "'num_entries' is True"),
        (set_field("embedding_dim", 5), r"holds .*should be"),
        (set_field("num_channels", 5), r"holds .*should be"),
        (set_field("num_channels", -6), "'num_channels' is -6"),
        (set_field("embedding_dtype", "float64"), r"holds .*should be"),
        (set_field("weight_dtype", 3), "'weight_dtype' is 3"),
        (set_field("has_labels", False), r"holds .*should be"),
        (set_field("has_keys", False), r"holds .*should be"),
        (set_field("has_keys", "yes"), "'has_keys' is 'yes'"),
        (set_field("layer", 3), "'layer' is 3"),
        (set_field("metadata", {"seed": 3}), "'metadata' is"),
        (set_field("metadata", None), "'metadata' is None"),
        (set_field("shards", []), r"'shards' is \[\]"),
        (set_field("shards", "all"), "'shards' is 'all'"),
        (set_field("shards", [3]), "names the shard None"),
        (lambda m: m["shards"].append(m["shards"][0]), "announces 10 entries, .* hold 14"),
        (set_shard("file", "../bank-0123456789abcdef.safetensors"), r"names the shard '\.\./bank"),
        (set_shard("file", "/etc/bank-0123456789abcdef.safetensors"), "names the shard '/etc"),
        (set_shard("file", "..\\bank-0123456789abcdef.safetensors"), "names the shard"),
        (set_shard("file", "bank-0123456789abcdef.safetensors\n"), "names the shard"),
        (set_shard("file", "bank-0123456789abcdef.pt"), "names the shard"),
        (set_shard("file", "bank-0123456789abcdef.safetensors"), "not named after its SHA-256"),
        (set_shard("sha256", "0" * 64), "not named after its SHA-256"),
        (set_shard("file", None), "names the shard None"),
        (set_shard("num_bytes", "1"), "record of shard .* is incomplete"),
        (set_shard("num_entries", 0), "record of shard .* is incomplete"),
        (set_shard("sha256", None), "record of shard .* is incomplete"),
    ],
)
def test_an_edited_manifest_is_refused_even_with_a_right_checksum(
    saved: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(saved, lambda manifest: None)
    WeightBank.load(saved)
    rewrite(saved, change)
    with pytest.raises(BankFileError, match=message):
        WeightBank.load(saved)


def test_an_edited_manifest_is_refused_for_its_checksum(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace('"features"', '"another"'))
    with pytest.raises(BankFileError, match=r"manifest\.json was altered: its checksum"):
        WeightBank.load(saved)


def replace_shard(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Writes another second shard, with a right record of it in the manifest."""
    tensors = {name: tensor.clone() for name, tensor in load_file(shard(path)).items()}
    change(tensors)
    put_shard(path, save(tensors))


def named_as_the_first(keys: torch.Tensor) -> torch.Tensor:
    first = "".join(f"vogel/größe {i}.jpg" for i in range(len(keys) // 18)).encode()
    return torch.tensor(list(first))


def put_shard(path: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    name = f"bank-{digest[:16]}.safetensors"
    shard(path).rename(path / name).write_bytes(content)
    record = {"file": name, "num_bytes": len(content), "sha256": digest}
    rewrite(path, lambda manifest: manifest["shards"][1].update(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("weights"), "should be"),
        (lambda t: t.pop("keys"), "should be"),
        (lambda t: t.update(more=torch.zeros(1)), "should be"),
        (lambda t: t.update(labels=t["labels"].int()), "should be"),
        (lambda t: t["key_ends"].add_(1), "its keys do not add up"),
        (lambda t: t["key_ends"][-1:].sub_(1), "its keys do not add up"),
        (lambda t: t["key_ends"].copy_(t["key_ends"].flip(0)), "its keys do not add up"),
        (lambda t: t["keys"].fill_(255), "a key is not text"),
        (lambda t: t["key_ends"].fill_(len(t["keys"])), "key '' is not a name"),
        (lambda t: t["keys"].copy_(named_as_the_first(t["keys"])), "key .* occurs twice"),
        (lambda t: t["weights"][1].fill_(torch.nan), "weights in .* row 5, hold NaN"),
    ],
)
def test_shards_of_other_content_are_refused_even_with_right_checksums(
    saved: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    replace_shard(saved, lambda tensors: None)
    WeightBank.load(saved)
    replace_shard(saved, change)
    with pytest.raises(BankFileError, match=message):
        WeightBank.load(saved)


def test_a_shard_that_is_no_safetensors_file_is_named(saved: Path) -> None:
    put_shard(saved, pickle.dumps({"weights": [1.0]}))
    with pytest.raises(BankFileError, match=f"{SHARD} is not a readable safetensors file"):
        WeightBank.load(saved, verify=False)


def test_without_verification_the_bytes_are_not_read(saved: Path) -> None:
    flip_a_bit(saved)
    assert len(WeightBank.load(saved, verify=False)) == 10


def test_absent_banks_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BankFileError, match=r"there is no directory .*nowhere"):
        WeightBank.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(BankFileError, match=r"there is no directory .*file"):
        WeightBank.load(tmp_path / "file")


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
