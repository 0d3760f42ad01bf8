import subprocess
import sys
from pathlib import Path

import pytest

import captum_embed
from captum_embed.command_line.main import main

HELP_WITHOUT_TORCH = """
import sys
from captum_embed.command_line.main import main
for words in ([], ["explain"], ["bank"], ["bank", "build"], ["bank", "merge"]):
    assert main([*words, "--help"]) == 0
assert main(["--version"]) == 0
assert main(["bank", "info"]) == 2
assert "torch" not in sys.modules
"""


def test_help_does_not_wait_for_torch() -> None:
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert captum_embed.__version__ in done.stdout
    assert "See: captum-embed bank info --help" in done.stderr


def test_every_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["explain"], ["bank", "build"], ["bank", "merge"], ["bank", "neighbors"]):
        assert main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "example" in shown
        assert "exit codes" in shown
        assert f"captum-embed {' '.join(words)} " in shown.partition("example")[2]


def test_names_are_imported_when_used() -> None:
    for name in captum_embed.__all__:
        assert name in dir(captum_embed)
        assert getattr(captum_embed, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = captum_embed.absent
