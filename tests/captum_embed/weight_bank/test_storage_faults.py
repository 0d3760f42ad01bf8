"""Saves that fail, are killed, or happen at once: the old bank or the new one is there, whole."""

import collections
import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError

import captum_embed.weight_bank.files as bank_files
import captum_embed.weight_bank.storage as storage
from captum_embed.errors import BankFileError
from captum_embed.weight_bank import WeightBank

from .conftest import (
    assert_equal,
    dying_at,
    exit_code,
    in_another_process,
    make_bank,
    needs_fork,
)


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
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.05)
    with FileLock(saved / ".lock"), pytest.raises(BankFileError, match=r"another saver.*\.lock"):
        make_bank(3).save(saved)
    assert_equal(WeightBank.load(saved), make_bank())
