"""The command line of the benchmarks, before a command has run."""

import subprocess
import sys
from types import ModuleType

import pytest

from benchmarks import __main__ as command_line

# Ends as --help does, and tells the processor time of the whole process.
HELP = """
import sys, time
from benchmarks.__main__ import main
try:
    main(["--help"])
except SystemExit:
    print(time.process_time(), "torch" in sys.modules)
"""


def test_help_answers_within_a_second_and_does_not_wait_for_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    *text, last = done.stdout.splitlines()
    assert all(name in "\n".join(text) for name in command_line.COMMANDS)
    seconds, has_torch = last.split()
    assert has_torch == "False"
    assert float(seconds) < 1


def test_a_command_whose_dependencies_are_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'altair'", name="altair")

    monkeypatch.setattr(command_line, "import_module", missing)
    assert command_line.main(["report", "--run", "somewhere"]) == 1
    error = capsys.readouterr().err
    assert "altair" in error
    assert "pip install -e '.[benchmarks]'" in error


def test_an_error_of_our_own_imports_is_not_taken_for_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'benchmarks.x'", name="benchmarks.x")

    monkeypatch.setattr(command_line, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        command_line.main(["report", "--run", "somewhere"])
