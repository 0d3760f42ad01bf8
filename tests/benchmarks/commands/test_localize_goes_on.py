"""localize goes on where it was stopped, shares its work, and takes no other run for its own."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.core.seeding import sample
from benchmarks.core.settings import INTERRUPTED
from benchmarks.datasets.cub import load_cub
from benchmarks.runs import evaluation

from .conftest import numbers_of, records, results, run, without_seconds, words_of, write_images


def test_a_run_that_ends_early_reports_a_sample_and_goes_on(finished: str) -> None:
    assert run("short", minutes="0", figures=False) == 0
    (measured,) = records("short")
    (first,) = sample(load_cub(Path("data")).select([3, 4]).records, 1, seed=0)
    assert measured["key"] == first.key
    assert set(results("short")["counts"]["measured"].values()) == {1}
    assert run("short") == 0
    assert numbers_of("short") == numbers_of("run")


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    finished: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = evaluation.Evaluator.record
    calls = []

    def interrupted(self: Any, image: Any) -> Any:
        calls.append(image.key)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "record", interrupted)
        assert run("parts") == INTERRUPTED
    assert "the same command goes on from here" in capsys.readouterr().out
    assert not Path("parts/results.json").exists()
    records = Path("parts/records.jsonl")
    assert len(records.read_text().splitlines()) == 3
    records.write_text(records.read_text() + '{"key": "half a li')
    assert run("parts") == 0
    assert "going on: 3 of 8 images are done" in capsys.readouterr().out
    assert numbers_of("parts") == numbers_of("run")


@pytest.mark.skipif(
    not hasattr(os, "fork") or torch.get_num_threads() > 1,
    reason="kills a copy of this process, which must have no threads: OMP_NUM_THREADS=1",
)
def test_a_killed_run_goes_on_to_the_same_numbers(
    finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies in place of a call that brings something to the disk."""
    calls = itertools.count(1)

    def dying(real: Callable[..., Any], last: int) -> Callable[..., Any]:
        return lambda *args: os._exit(9) if next(calls) == last else real(*args)

    # `make torture` kills at each.
    kills = int(os.environ.get("RUN_KILLS", "1"))
    for last in range(1, kills + 1) if kills > 1 else [5]:
        child = os.fork()
        if not child:
            for name in ("fsync", "replace"):
                monkeypatch.setattr(os, name, dying(getattr(os, name), last))
            run(f"killed_{last}")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert run(f"killed_{last}") == 0
        assert numbers_of(f"killed_{last}") == numbers_of("run")


def test_several_processes_give_the_numbers_of_one(finished: str) -> None:
    methods = ["ours_paper", "layer_grad_cam"]
    assert run("two", methods=",".join(methods), limit="3", workers="2") == 0
    of_one = {record["key"]: record["protocols"] for record in records()}
    assert len(records("two")) == 3
    for record in records("two"):
        for protocol, measured in record["protocols"].items():
            for name in methods:
                ours, theirs = (
                    without_seconds(each["methods"][name])
                    for each in (of_one[record["key"]][protocol], measured)
                )
                assert ours.keys() == theirs.keys()
                for figure, stated in ours.items():
                    # Lists are of whole ten-thousandths.
                    tolerance = 1 if isinstance(stated, list) else 1e-4
                    assert theirs[figure] == pytest.approx(stated, abs=tolerance)


DIES = """
record = evaluation.Evaluator.record
def dying(self, work, done=[]):
    done.append(work)
    return record(self, work) if len(done) < 2 else os._exit(9)
evaluation.Evaluator.record = dying
"""


def test_the_processes_of_torchrun_share_the_images_and_go_on_after_one_died(
    finished: str, run_by_two_processes: Callable[..., list[int | None]]
) -> None:
    assert run_by_two_processes(words_of("parts"), DIES) == [1, 9]
    assert "another process of the job has ended" in Path("log0.txt").read_text()
    assert not Path("parts/results.json").exists()
    assert run_by_two_processes(words_of("parts")) == [0, 0]
    assert "going on: 5 of 8 images are done" in Path("log0.txt").read_text()
    assert "images are done" not in Path("log1.txt").read_text()
    assert numbers_of("parts") == numbers_of("run")
    assert results("parts")["workers"] == 2
    assert not list(Path("parts").glob("records-*"))


def test_a_localized_is_not_computed_again(finished: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numbers_of("run")
    monkeypatch.setattr(evaluation.Evaluator, "record", lambda *_: pytest.fail("computed again"))
    assert run() == 0
    assert numbers_of("run") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "1"}, "seed: 0 there, 1 here"),
        ({"methods": "saliency"}, "methods:"),
        ({"limit": "3"}, "limit: None there, 3 here"),
        ({"test-classes": "4,2"}, "test_classes: '3-4' there, '2,4' here"),
        ({"network": "tiny_networks:without_relu"}, "network_fingerprint:"),
        # Times of both have no common median.
        ({"workers": "2"}, "workers: 1 there, 2 here"),
    ],
)
def test_another_run_in_the_same_folder_is_refused_with_what_differs(
    finished: str, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    before = Path("run/results.json").read_bytes()
    assert run(**change) == 1
    error = capsys.readouterr().err
    assert "holds a run with other settings" in error
    assert message in error
    assert Path("run/results.json").read_bytes() == before


def test_changed_images_are_another_run(finished: str, capsys: pytest.CaptureFixture[str]) -> None:
    boxes = Path("data/bounding_boxes.txt")
    boxes.write_text(boxes.read_text().replace("10.0 12.0", "11.0 12.0"))
    assert run() == 1
    assert "data_digest" in capsys.readouterr().err


def test_masks_and_removal_are_measured_the_same_after_an_interruption(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(Path("data"), with_masks=True)

    def run_all(output: str) -> int:
        protocols = "attention,boxes,faithfulness"
        return run(output, methods="ours_paper,saliency", limit="3", protocols=protocols)

    assert run_all("whole") == 0
    original = evaluation.Evaluator.record
    with monkeypatch.context() as patch:
        calls: list[str] = []

        def interrupted(self: Any, image: Any) -> Any:
            calls.append(image.key)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(self, image)

        patch.setattr(evaluation.Evaluator, "record", interrupted)
        assert run_all("parts") == INTERRUPTED
    assert run_all("parts") == 0
    assert numbers_of("parts") == numbers_of("whole")
    saliency = results("whole")["summary"]["saliency"]
    for protocol, figures in {
        "boxes": ("pxap", "pointing", "mask_pointing"),
        "faithfulness": ("deletion", "insertion"),
    }.items():
        for figure in figures:
            stated = saliency[protocol]["figures"][figure]
            assert stated["low"] <= stated["value"] <= stated["high"]
            assert stated["difference_low"] <= stated["difference"] <= stated["difference_high"]
    # The crops are prepared once, for both protocols that show them.
    assert sorted(path.name for path in Path("whole/cache").iterdir()) == ["attention", "boxes"]
    table = Path("whole/results.md").read_text()
    assert all(heading in table for heading in ("PxAP", "pointing, mask", "deletion", "insertion"))


def test_masks_that_came_later_are_another_run(
    finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(Path("data"), with_masks=True)
    assert run() == 1
    assert "data_digest" in capsys.readouterr().err
