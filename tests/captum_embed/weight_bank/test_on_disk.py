"""Banks that grow and shrink on disk."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import captum_embed.weight_bank.storage as storage
from captum_embed.errors import BankFileError, BankMismatchError, InputError
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


def some_entries(start: int, count: int, *, compact: bool = False, seed: int = 0) -> WeightBank:
    """Entries whose keys are numbers from ``start``, of three classes."""
    generator = torch.Generator().manual_seed(100 * start + seed)
    bank = WeightBank(
        torch.randn(count, 3, generator=generator),
        torch.randn(count, 8, generator=generator),
        labels=[i % 3 for i in range(start, start + count)],
        keys=[f"bird {i}.jpg" for i in range(start, start + count)],
        metadata={"layer": "features"},
    )
    return bank.compact(top_channels=4, embeddings="float16") if compact else bank


def in_memory(bank: WeightBank, rows: list[int]) -> WeightBank:
    """Rows of a bank, made by hand."""
    return WeightBank(
        bank.embeddings[rows],
        bank.weights[rows],
        None if bank.labels is None else bank.labels[rows],
        None if bank.keys is None else [bank.keys[row] for row in rows],
        bank.metadata,
    )


def files_of(path: Path) -> dict[str, tuple[int, int]]:
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns)
        for file in path.glob("*.safetensors")
    }


@settings(max_examples=25, deadline=None)
@given(compact=st.booleans(), verify=st.booleans(), data=st.data())
def test_what_happens_to_a_bank_on_disk_is_what_happens_in_memory(
    tmp_path_factory: pytest.TempPathFactory, compact: bool, verify: bool, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("banks") / "bank"
    everything = some_entries(0, 6, compact=compact)
    everything.save(path, max_shard_size=data.draw(st.sampled_from([1, 300, "1GB"])))
    left = list(range(6))
    expected = everything
    for step in range(data.draw(st.integers(1, 4))):
        before = files_of(path)
        what = data.draw(st.sampled_from(["append", "key", "label", "selection"]))
        if what == "append":
            start = len(everything)
            more = some_entries(start, data.draw(st.integers(1, 4)), compact=compact, seed=step)
            more.append_to(path, verify=verify)
            everything = WeightBank.concat([everything, more])
            left += range(start, len(everything))
            assert before.items() <= files_of(path).items()
        elif len(left) > 1:
            gone = {data.draw(st.sampled_from(left)) for _ in range(len(left) // 2)}
            if what == "label":
                labels = {row % 3 for row in gone}
                gone = {row for row in left if row % 3 in labels}
                if len(gone) == len(left):
                    continue
                assert WeightBank.drop_from(path, labels, verify=verify) == len(gone)
            elif what == "key":
                assert WeightBank.drop_from(path, {f"bird {row}.jpg" for row in gone}) == len(gone)
            else:
                bank = WeightBank.load(path, verify=verify)
                bank[[row not in gone for row in left]].save(path)
            left = [row for row in left if row not in gone]
            # Files are as they were, or gone with their last entry.
            assert files_of(path).items() <= before.items()
        expected = in_memory(everything, left)
        for mmap in (True, False):
            loaded = WeightBank.load(path, mmap=mmap, verify=verify)
            assert_equal(loaded, expected)
        loaded = WeightBank.load(path, verify=verify)
        queries = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        for ours, theirs in zip(loaded.search(queries), expected.search(queries), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(loaded.transfer(queries), expected.transfer(queries))
    # Elsewhere, or anew, nothing is left of what was dropped.
    WeightBank.load(path).save(path.parent / "elsewhere")
    WeightBank.load(path, mmap=False).save(path)
    for folder in (path, path.parent / "elsewhere"):
        assert '"dropped": [\n' not in (folder / "manifest.json").read_text()
        assert_equal(WeightBank.load(folder), expected)


def test_a_bank_of_several_parts_is_made_compact_and_saved(tmp_path: Path) -> None:
    parts = [some_entries(0, 5), some_entries(5, 4)]
    WeightBank.concat(parts).save(tmp_path / "parts", max_shard_size=300)
    WeightBank.drop_from(tmp_path / "parts", [1])
    expected = in_memory(WeightBank.concat(parts), [0, 2, 3, 5, 6, 8]).compact(4)
    for bank in (WeightBank.load(tmp_path / "parts"), WeightBank.concat(parts)[[0, 2, 3, 5, 6, 8]]):
        bank.compact(4).save(tmp_path / "compact")
        assert_equal(WeightBank.load(tmp_path / "compact"), expected)
        bank.compact(embeddings="float64").save(tmp_path / "wide")
        assert torch.equal(WeightBank.load(tmp_path / "wide").weights, bank.weights)


def test_the_manifest_says_what_was_dropped(tmp_path: Path) -> None:
    some_entries(0, 9, compact=True).save(tmp_path)
    WeightBank.drop_from(tmp_path, ["bird 3.jpg", "bird 4.jpg", "bird 8.jpg"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["num_entries"], manifest["top_channels"]) == (6, 4)
    assert (manifest["embedding_dtype"], manifest["weight_dtype"]) == ("float16", "float16")
    assert manifest["shards"][0]["num_entries"] == 9
    assert manifest["shards"][0]["dropped"] == [[3, 5], [8, 9]]
    WeightBank.drop_from(tmp_path, ["bird 5.jpg"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["shards"][0]["dropped"] == [[3, 6], [8, 9]]


def test_a_compact_entry_takes_four_bytes_a_channel(tmp_path: Path) -> None:
    WeightBank(torch.randn(200, 8), torch.randn(200, 2048)).compact(50, embeddings="float16").save(
        tmp_path
    )
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size / 200 == pytest.approx(50 * 4 + 4 + 8 * 2, abs=3)


@pytest.mark.parametrize(
    "dropped",
    [[[3, 2]], [[0, 10]], [[0, 2], [2, 3]], [[2, 3], [0, 1]], [[-1, 1]], [[0]], [["0", 1]], 3],
)
def test_dropped_rows_that_cannot_be_are_refused(tmp_path: Path, dropped: Any) -> None:
    some_entries(0, 9).save(tmp_path)
    rewrite(tmp_path, lambda manifest: manifest["shards"][0].update(dropped=dropped))
    with pytest.raises(BankFileError, match="the rows dropped from shard"):
        WeightBank.load(tmp_path)


@needs_fork
@pytest.mark.parametrize(
    ("change", "entries"),
    [
        (lambda path: some_entries(4, 2).append_to(path), 6),
        (lambda path: WeightBank.drop_from(path, ["bird 1.jpg"]), 3),
    ],
)
def test_a_change_that_is_killed_leaves_the_bank_as_it_was_or_as_it_was_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any], entries: int
) -> None:
    path = tmp_path / "bank"

    def killed(step: int) -> None:
        dying_at(step, monkeypatch)
        change(path)

    counts = []
    for step in itertools.count(1):
        shutil.rmtree(path, ignore_errors=True)
        some_entries(0, 4).save(path)
        code = exit_code(in_another_process(lambda step=step: killed(step)))  # type: ignore[misc]
        counts.append(len(WeightBank.load(path)))
        if code == 0:
            break
        assert code == 9
    assert set(counts) == {4, entries}
    assert counts == sorted(counts, reverse=entries < 4)


@needs_fork
def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    some_entries(0, 3).save(tmp_path)

    def append(start: int) -> None:
        for number in range(start, start + 5):
            some_entries(number, 1).append_to(tmp_path)

    writers = [in_another_process(lambda start=start: append(start)) for start in (10, 20)]  # type: ignore[misc]
    for _ in range(20):
        assert len(WeightBank.load(tmp_path)) >= 3
    assert [exit_code(writer) for writer in writers] == [0, 0]
    keys = {f"bird {i}.jpg" for i in (*range(3), *range(10, 15), *range(20, 25))}
    assert set(WeightBank.load(tmp_path).keys or ()) == keys


def test_who_waits_too_long_for_another_writer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_entries(0, 3).save(tmp_path)
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.02)
    with FileLock(tmp_path / ".lock"):
        for change in (
            lambda: some_entries(4, 2).append_to(tmp_path),
            lambda: WeightBank.drop_from(tmp_path, [1]),
        ):
            with pytest.raises(BankFileError, match=r"another saver has held.*\.lock"):
                change()
    assert_equal(WeightBank.load(tmp_path), some_entries(0, 3))


@pytest.mark.parametrize("damage", [flip_a_bit, truncate])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_damaged_file_is_not_kept(
    tmp_path: Path, damage: Callable[[Path], None], verify: bool, elsewhere: bool
) -> None:
    path = tmp_path / "bank"
    some_entries(0, 9).save(path, max_shard_size=300)
    if verify:  # It is damaged after it was compared.
        bank = WeightBank.load(path)
    damage(path)
    if not verify and damage is flip_a_bit:
        bank = WeightBank.load(path, verify=False)
    elif not verify:
        return
    before = {file: file.read_bytes() for file in path.iterdir()}
    name = shard(path).name
    for save in (
        lambda: bank.save(tmp_path / "copy" if elsewhere else path),
        lambda: some_entries(9, 1).append_to(path),
        lambda: WeightBank.drop_from(path, ["bird 0.jpg"]),
    ):
        with pytest.raises(BankFileError, match=rf"{name} (was altered|is truncated)"):
            save()
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    assert os.listdir(tmp_path) == ["bank"]


def test_what_was_compared_on_loading_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_entries(0, 9).save(tmp_path)
    loaded, unread = WeightBank.load(tmp_path), WeightBank.load(tmp_path, verify=False)
    read: list[Path] = []
    real = Path.open

    def watched(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "rb" and path.name != "manifest.json":
            read.append(path)
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", watched)
    loaded.save(tmp_path)
    assert read == []
    unread.save(tmp_path)
    assert [path.name for path in read] == [shard(tmp_path, 0).name]
    some_entries(9, 1).append_to(tmp_path, verify=False)
    WeightBank.drop_from(tmp_path, [0], verify=False)
    assert len(read) == 2  # The new file alone, to be named.


def test_keys_of_a_mapped_bank_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    some_entries(0, 9).save(tmp_path)
    content = shard(tmp_path, 0).read_bytes()
    shard(tmp_path, 0).write_bytes(content.replace(b"bird 3", b"bird 2"))
    bank = WeightBank.load(tmp_path, verify=False)
    assert "keys" in repr(bank)
    bank.transfer(torch.zeros(1, 3))
    bank[::2].transfer(torch.zeros(1, 3))
    with pytest.raises(BankFileError, match=r"key 'bird 2\.jpg' occurs twice"):
        _ = bank.keys


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bird 9.jpg"], r"names: no entry has the key 'bird 9\.jpg'"),
        ([7], "names: no entry has the label 7"),
        ("bird 1.jpg", r"names is 'bird 1\.jpg'; expected a collection"),
        ([0, 1, 2], "all 4 entries are excluded"),
    ],
)
def test_refuses_to_drop_what_is_not_there_or_everything(
    tmp_path: Path, names: Any, message: str
) -> None:
    some_entries(0, 4).save(tmp_path)
    with pytest.raises(InputError, match=message):
        WeightBank.drop_from(tmp_path, names)
    assert_equal(WeightBank.load(tmp_path), some_entries(0, 4))


def test_refuses_to_append_what_does_not_belong(tmp_path: Path) -> None:
    some_entries(0, 4, compact=True).save(tmp_path)
    for more, error, message in (
        (some_entries(4, 2), InputError, r"bank 1 has embeddings dtype torch.float32.*\.compact"),
        (some_entries(3, 2, compact=True), InputError, "key 'bird 3.jpg' is in bank 0 and in"),
        (WeightBank(torch.eye(2), torch.eye(2)), BankMismatchError, "embedding_dim 2, bank 0"),
    ):
        with pytest.raises(error, match=message):
            more.append_to(tmp_path)
    assert_equal(WeightBank.load(tmp_path), some_entries(0, 4, compact=True))
    for change in (
        lambda: some_entries(0, 1).append_to(tmp_path / "nowhere"),
        lambda: WeightBank.drop_from(tmp_path / "nowhere", [1]),
    ):
        with pytest.raises(BankFileError, match="there is no directory"):
            change()
    assert not (tmp_path / "nowhere").exists()
