"""Imports run downwards in the drawing of docs/architecture.md, and never in a circle."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmarks", "captum_embed")


def drawn(package: str) -> dict[str, int]:
    """The parts of a package by name, with their line in the drawing."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(rf"```\n{package}/\n(.*?)```", text, re.S)
    assert block is not None
    floors: dict[str, int] = {}
    for floor, line in enumerate(block[1].splitlines()):
        for name in re.split(r"\s{2,}", line.strip())[0].split(", "):
            assert name not in floors, f"{name} is drawn twice"
            floors[name] = floor
    return floors


@cache
def imports(package: str) -> dict[str, set[str]]:
    """Every module of a package by its dotted name, with what it imports, inside functions too."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    return {name: set(imported(path, set(paths))) for name, path in paths.items()}


def imported(path: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module in known else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def part(module: str) -> str | None:
    """The folder or file of the package that a module lies in; None for the package itself."""
    name = [*module.split("."), "__main__"][1]
    return None if name == "__main__" else name


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_downwards_in_the_drawing(package: str) -> None:
    floors = drawn(package)
    rooms = {name: part(name) for name in imports(package) if part(name)}
    assert set(rooms.values()) == set(floors)
    upwards = [
        f"{name} imports {other}"
        for name, room in sorted(rooms.items())
        for other in imports(package)[name] & set(rooms)
        if rooms[other] != room and floors[rooms[other]] <= floors[room]
    ]
    assert upwards == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    names = imports(package)
    needs = {name: others & set(names) - {name} for name, others in names.items()}
    TopologicalSorter(needs).prepare()  # Raises CycleError.


def test_the_library_does_not_import_the_benchmarks() -> None:
    used = set().union(*imports("captum_embed").values())
    assert not any(name.split(".")[0] == "benchmarks" for name in used)
