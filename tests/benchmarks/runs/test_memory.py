import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.runs import memory
from benchmarks.runs.memory import STATUS, _forked, largest_image

needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc")
MEGABYTE = 1_000_000


def nothing() -> None:
    pass


def hold(megabytes: int) -> bytearray:
    return bytearray(os.urandom(1000) * (1000 * megabytes))


@needs_proc
@pytest.mark.parametrize("megabytes", [50, 200])
def test_the_peak_is_what_a_task_held_at_most(megabytes: int) -> None:
    # All is freed before the task ends.
    peak = _forked(lambda: hold(megabytes), nothing)
    assert peak is not None
    # The bytes and their copy as a bytearray.
    assert peak == pytest.approx(2 * megabytes * MEGABYTE, rel=0.1)


@needs_proc
def test_what_is_not_the_task_s_is_not_counted() -> None:
    kept = hold(100)

    def forward() -> None:
        hold(5)

    peak = _forked(nothing, forward)
    assert peak is not None
    assert peak < 12 * MEGABYTE
    assert len(kept) == 100 * MEGABYTE


@needs_proc
def test_pages_of_files_that_the_forward_pass_reads_too_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(bytes(hold(60)))
    mapped = np.memmap(path, dtype=np.uint8, mode="r")

    def read() -> None:
        mapped.sum()

    with_forward, without = _forked(read, read), _forked(read, nothing)
    assert with_forward is not None
    assert without is not None
    assert with_forward < 12 * MEGABYTE < 50 * MEGABYTE < without


@needs_proc
def test_tasks_do_not_change_what_others_take() -> None:
    before = _forked(lambda: hold(60), nothing)
    _forked(lambda: hold(300), nothing)
    after = _forked(lambda: hold(60), nothing)
    assert before is not None
    assert after == pytest.approx(before, rel=0.05)


@needs_proc
def test_a_task_that_fails_has_no_peak(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise RuntimeError("no")

    assert _forked(fails, nothing) is None
    assert _forked(lambda: os._exit(3), nothing) is None


@needs_proc
def test_a_task_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(memory, "TIME_LIMIT", 0.2)
    started = time.monotonic()
    assert _forked(lambda: time.sleep(60), nothing) is None
    assert time.monotonic() - started < 20


def test_where_the_system_does_not_say_there_is_no_peak(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "absent")
    assert _forked(nothing, nothing) is None


def test_the_largest_image_is_the_one_with_most_pixels() -> None:
    def record(key: str, **protocols: Any) -> dict[str, Any]:
        return {"key": key, "protocols": protocols}

    records = [
        record("b", boxes={"size": [10, 30]}, attention={"size": [224, 224]}),
        record("a", boxes={"size": [30, 10]}, attention={"left_out": "outside"}),
        record("c", boxes={"size": [19, 15]}),
        {"key": "d", "unreadable": "truncated"},
    ]
    assert largest_image(records, "boxes") == "a"
    assert largest_image(records, "attention") == "b"
    assert largest_image(records, "faithfulness") is None
