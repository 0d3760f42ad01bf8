"""Every Python block of the README and the docs runs as written, from top to bottom of its page."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.core.settings
from benchmarks.__main__ import main as run_benchmark
from benchmarks.datasets import composition
from captum_embed.command_line import main as command_line

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name_of)
def test_examples_run_as_written(page, tmp_path, monkeypatch):
    blocks = python_blocks(page)
    if any("pytorch_metric_learning" in block for block in blocks):
        pytest.importorskip("pytorch_metric_learning")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composition, "SIZES", ((250, 188), (188, 250)))  # Half of what a user gets.
    exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": page.stem})


def commands(page: Path) -> list[list[str]]:
    """The words of every command of ours, from its name on."""
    words = []
    for language, block in re.findall(r"^```(.*?)\n(.*?)^```$", page.read_text(), re.M | re.S):
        lines = block.replace("\\\n", " ").splitlines() if language in ("sh", "") else []
        for line in lines:
            command = re.search(
                r"^captum-embed .*|-m (captum_embed\.build_bank|benchmarks) \w.*",
                line.partition(" #")[0],
            )
            if command:
                words.append(shlex.split(command[0].removeprefix("-m ")))
    return words


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_are_typed_right(page, monkeypatch, capsys):
    def settings_of(run, settings, parsed):
        benchmarks.core.settings.from_arguments(settings, parsed)
        return 0

    monkeypatch.setattr(benchmarks.core.settings, "execute", settings_of)
    nothing = SimpleNamespace(run=lambda parsed: ({}, ""))
    monkeypatch.setattr(command_line, "import_module", lambda name: nothing)
    for name, *words in commands(page):
        # A loop of the shell gives numbers.
        words = [re.sub(r"\$\w+", "50", word) for word in words]
        if name == "benchmarks":
            code = run_benchmark(words)
        else:
            options = ["bank", "build", *words] if "build_bank" in name else words
            code = command_line.main(options)
        assert code == 0, (words, capsys.readouterr().err)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_example_is_about_ten_lines():
    lines = [line for line in python_blocks(ROOT / "README.md")[0].splitlines() if line.strip()]
    assert 8 <= len(lines) <= 14
