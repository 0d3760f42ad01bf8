import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.core.files import require_writable_folder, write_atomically, write_json
from benchmarks.runs.folder import RunFolder
from captum_embed.errors import InputError

IDENTITY = {"seed": 0, "methods": ["a"]}


def records_of(path: Path) -> list[dict[str, Any]]:
    with RunFolder(path, IDENTITY) as run:
        return list(run.records())


def test_records_are_found_again_by_the_next_run(tmp_path: Path) -> None:
    records = [{"key": "one", "value": 1}, {"key": "two", "value": 2}]
    with RunFolder(tmp_path / "run", IDENTITY) as first:
        for record in records:
            first.add(record)
    assert records_of(tmp_path / "run") == records
    with RunFolder(tmp_path / "run", IDENTITY) as second:
        assert second.done == {"one", "two"}


@pytest.mark.parametrize("length", [1, 200_000])
def test_a_line_cut_off_by_a_crash_is_dropped_and_the_rest_kept(
    tmp_path: Path, length: int
) -> None:
    with RunFolder(tmp_path, IDENTITY) as run:
        run.add({"key": "one"})
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"key": "' + length * "t")
    with RunFolder(tmp_path, IDENTITY) as resumed:
        assert resumed.done == {"one"}
        resumed.add({"key": "two"})
    assert records_of(tmp_path) == [{"key": "one"}, {"key": "two"}]


def test_a_crash_in_the_first_line_leaves_no_record(tmp_path: Path) -> None:
    with RunFolder(tmp_path, IDENTITY):
        (tmp_path / "records.jsonl").write_text('{"key"')
    assert records_of(tmp_path) == []


@pytest.mark.parametrize("damage", [b"garbage\n", b"\xff\xfe\n"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    with RunFolder(tmp_path, IDENTITY) as run:
        run.add({"key": "one"})
    with open(tmp_path / "records.jsonl", "ab") as file:
        file.write(damage)
    for _ in range(2):
        # Refused again, and not for a lock that was left behind.
        with pytest.raises(InputError, match=r"records\.jsonl, line 2: not a record"):
            RunFolder(tmp_path, IDENTITY)


def test_a_run_with_other_settings_is_refused_with_what_differs(tmp_path: Path) -> None:
    with RunFolder(tmp_path, IDENTITY):
        pass
    with pytest.raises(InputError, match=r"seed: 0 there, 1 here"):
        RunFolder(tmp_path, {**IDENTITY, "seed": 1})
    with pytest.raises(InputError, match=r"extra: None there, 2 here"):
        RunFolder(tmp_path, {**IDENTITY, "extra": 2})


def test_a_second_run_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    with RunFolder(tmp_path, IDENTITY), pytest.raises(InputError, match="another run is at work"):
        RunFolder(tmp_path, IDENTITY)
    with RunFolder(tmp_path, IDENTITY):
        pass


def test_another_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from benchmarks.runs.folder import RunFolder;"
        f"run = RunFolder(Path(sys.argv[1]), {IDENTITY!r}); print('open', flush=True);"
        "time.sleep(60)"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(InputError, match="another run is at work"):
            RunFolder(tmp_path, IDENTITY)
        process.kill()
    assert records_of(tmp_path) == []


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "cache/boxes").mkdir(parents=True)
    for name in (".part-12-results.json", "cache/boxes/.part-12-queries.safetensors"):
        (tmp_path / name).write_text("half")
    (tmp_path / "data/.part-12-embedded/images").mkdir(parents=True)
    (tmp_path / "data/.part-12-embedded/images/.part-1").write_text("half")
    (tmp_path / "cache/boxes/queries.safetensors").write_text("whole")
    with RunFolder(tmp_path, IDENTITY):
        assert not list(tmp_path.rglob(".part-*"))
        assert (tmp_path / "cache/boxes/queries.safetensors").exists()


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


@pytest.mark.parametrize("text", ["[]", "3", "{", "null"])
def test_a_file_that_is_no_identity_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json: not JSON of a run"):
        RunFolder(tmp_path, IDENTITY)
