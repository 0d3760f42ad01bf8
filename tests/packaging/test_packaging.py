"""Metadata, as a package index shows it, and types, as a user's checker sees them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

import captum_embed

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()


def readme_for_an_index() -> str:
    """The README after the substitutions of pyproject.toml, which the build applies."""
    text = (ROOT / "README.md").read_text()
    rules = re.findall(r"^pattern = '(.*)'\nreplacement = '(.*)'$", PROJECT, flags=re.M)
    assert len(rules) == 2
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement.replace("$HFPR_VERSION", "1.0"), text)
    return text


def test_an_index_can_follow_every_link_and_picture() -> None:
    text = readme_for_an_index()
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets)
    for picture in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text):
        assert picture.startswith("https://raw.githubusercontent.com/"), picture


def test_the_address_of_the_repository_is_one() -> None:
    names = re.findall(r"https://(?:github|raw\.githubusercontent)\.com/([\w-]+/[\w-]+)", PROJECT)
    assert len(names) >= 6
    assert len(set(names)) == 1
    others = [
        path.name
        for folder in ("captum_embed", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if names[0] in path.read_text()
    ]
    assert not others


def test_messages_and_pages_name_extras_that_exist() -> None:
    section = PROJECT.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    declared = re.findall(r"^([\w-]+) = \[", section, flags=re.M)
    paths = [ROOT / "README.md", ROOT / "Makefile", ROOT / ".github/workflows/ci.yml"]
    paths += [p for f in ("captum_embed", "benchmarks") for p in (ROOT / f).rglob("*.py")]
    paths += (ROOT / "docs").rglob("*.md")
    named = [
        (path.name, extra)
        for path in paths
        for extras in re.findall(r"(?:\.|captum-embed)\[([a-z, ]+)\]", path.read_text())
        for extra in extras.split(",")
    ]
    assert len(named) > 5
    assert [each for each in named if each[1].strip() not in declared] == []
    # Who has no checkout has no extra for them either: the library names packages of the index.
    library = [path.read_text() for path in (ROOT / "captum_embed").rglob("*.py")]
    assert not any(re.search(r"pip install [^\n]*\[", text) for text in library)


def test_the_version_has_one_home() -> None:
    assert 'dynamic = ["readme", "version"]' in PROJECT
    assert not re.search(r"^version = ", PROJECT, flags=re.M)
    assert Version(captum_embed.__version__) >= Version("0.2.0")


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_checker_sees_tensors_and_tuples(checker: str) -> None:
    pytest.importorskip(checker)
    # mypy has the options of `make lint`, and so its cache: half a minute less.
    command = [sys.executable, "-m", checker, "tests/packaging/typed_user.py"]
    if checker == "pyright":
        command += ["--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
