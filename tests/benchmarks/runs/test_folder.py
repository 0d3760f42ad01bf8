import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.core.files import require_writable_folder, write_atomically, write_json
from benchmarks.runs.folder import RunFolder
from captum_embed.errors import InputError

IDENTITY = {"seed": 0, "methods": ["a"]}


def test_records_are_found_again_by_the_next_run(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run", IDENTITY)
    first.add({"key": "one", "value": 1})
    first.add({"key": "two", "value": 2})
    assert RunFolder(tmp_path / "run", IDENTITY).records == first.records
    assert list(first.records) == ["one", "two"]


def test_a_line_cut_off_by_a_crash_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, IDENTITY)
    run.add({"key": "one"})
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"key": "tw')
    resumed = RunFolder(tmp_path, IDENTITY)
    assert list(resumed.records) == ["one"]
    resumed.add({"key": "two"})
    assert list(RunFolder(tmp_path, IDENTITY).records) == ["one", "two"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY).add({"key": "one"})
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write("garbage\n")
    with pytest.raises(InputError, match=r"records\.jsonl, line 2: not a record"):
        RunFolder(tmp_path, IDENTITY)


def test_a_run_with_other_settings_is_refused_with_what_differs(tmp_path: Path) -> None:
    RunFolder(tmp_path, IDENTITY)
    with pytest.raises(InputError, match=r"seed: 0 there, 1 here"):
        RunFolder(tmp_path, {**IDENTITY, "seed": 1})
    with pytest.raises(InputError, match=r"extra: None there, 2 here"):
        RunFolder(tmp_path, {**IDENTITY, "extra": 2})


def test_records_of_an_unknown_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="whose records"):
        RunFolder(tmp_path, IDENTITY)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write there"):
        RunFolder(tmp_path / "file", IDENTITY)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write there"):
        require_writable_folder(tmp_path / "new", "--output")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_json(tmp_path / "results.json", {"a": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_checkpoints_can_be_read_by_whoever_can_read_other_files(tmp_path: Path) -> None:
    text = write_json(tmp_path / "results.json", {})
    tensors = write_atomically(
        tmp_path / "network.safetensors", lambda path: save_file({"a": torch.zeros(2)}, path)
    )
    assert tensors.stat().st_mode == text.stat().st_mode
    assert torch.equal(load_file(tensors)["a"], torch.zeros(2))


def test_nan_is_refused_rather_than_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "results.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())
