"""Every Python block of the README and the docs runs as written, from top to bottom of its page.

Notebooks run when the site is built. Commands are parsed, or run where that takes seconds
(``tests/captum_embed/command_line/test_how_to.py``).
"""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.core.settings
from benchmarks.__main__ import main as run_benchmark
from benchmarks.datasets import composition
from captum_embed.command_line import main as command_line

ROOT = Path(__file__).resolve().parents[2]
OF_ROOT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*OF_ROOT, *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block between fences, indented or not."""
    fenced = r"^[ \t]*(?:```+|~~~+)(.*?)\n(.*?)^[ \t]*(?:```+|~~~+)[ \t]*$"
    return re.findall(fenced, page.read_text(), flags=re.M | re.S)


def python_blocks(page: Path) -> list[str]:
    return [text for language, text in blocks(page) if language == "python"]


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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_escapes_the_tests_of_this_file(page):
    for language, text in blocks(page):
        if not language.startswith(("{toctree}", "{include}", "{eval-rst}")):
            assert language in ("python", "sh", "text", "bibtex", ""), f"{page.name}: {language}"
        if language != "python":
            assert not re.search(r"^\s*(>>>|import \w|from \w+ import)", text, re.M), text


def shell_lines(page: Path) -> list[str]:
    """The lines of the page's shell blocks, without remarks."""
    texts = [text for language, text in blocks(page) if language in ("sh", "")]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    return [line.partition(" #")[0] for line in lines]


def commands(page: Path) -> list[list[str]]:
    """The words of every command of ours, from its name on."""
    ours = r"^captum-embed .*|-m (captum_embed\.build_bank|benchmarks) \w.*"
    matches = [re.search(ours, line) for line in shell_lines(page)]
    return [shlex.split(command[0].removeprefix("-m ")) for command in matches if command]


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
def test_targets_and_scripts_of_commands_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for line in shell_lines(page):
        if line.startswith("make "):
            words = [word for word in shlex.split(line)[1:] if "=" not in word]
            assert {*words} <= {*targets, ".venv/.installed"}, line
        for script in re.findall(r"python (\S+\.py)|-m pytest (\S+)", line):
            assert (ROOT / "".join(script)).exists(), line
        for module in re.findall(r"-m (docs\.\S+)", line):
            assert find_spec(module), line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_example_is_about_ten_lines():
    lines = [line for line in python_blocks(ROOT / "README.md")[0].splitlines() if line.strip()]
    assert 8 <= len(lines) <= 14
