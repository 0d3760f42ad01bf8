"""Mutation testing: an error is planted in the code, and a test must fail; then the next error.

``python -m tests.mutation`` draws mutants of mutmut with a seed, in proportion to each file's, and
tries each against the doctests and tests of its module, then those of the modules that import it,
until one fails or the time is up. What was tried is kept, and a run that was stopped goes on.
mutmut's own runner needs all tests to run first; here one file of a copy is changed at a time, and
a process that has imported torch is copied for each mutant.

Left out are messages (texts with blanks), types, and what is not inside a function.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CODE = ("captum_embed", "benchmarks/metrics")
# What most tests import: the copies have it.
IMPORTED = [
    "captum.attr",
    "captum.metrics",
    "hypothesis",
    "matplotlib.pyplot",
    "pytest",
    "scipy.ndimage",
    "torchvision",
]
# Long tests of what short ones test, too.
SLOW = "not (killed or savers or reader_sees or threads or half_precision or processes_build)"
SECONDS = 25  # Of the processor, for the tests of one mutant.
MEMORY = 12 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="mutants to be drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "mutants")
    parser.add_argument(
        "--again", action="store_true", help="try survivors with the tests as they are now"
    )
    settings = parser.parse_args()
    tree, tried = settings.folder.resolve() / "tree", settings.folder / "tried.jsonl"
    os.environ.update(CAPTUM_EMBED_SHARED="/nowhere", OMP_NUM_THREADS="1")
    if settings.again or not tree.exists():
        copy_files(tree, *(["tests"] if tree.exists() else []))
    records = map(json.loads, tried.read_text().splitlines() if tried.exists() else [])
    known = {(record["file"], record["number"]): record for record in records}
    chosen = settings.folder / f"drawn_{settings.count}_{settings.seed}.json"
    if not chosen.exists():
        chosen.write_text(json.dumps(draw(tree, settings.count, settings.seed)))
    drawn = [(file, number) for file, number in json.loads(chosen.read_text())]
    for name in IMPORTED:
        __import__(name)
    for place, mutant in enumerate(drawn, 1):
        again = settings.again and known[mutant]["result"] != "killed"
        if mutant not in known or again:
            known[mutant] = record = try_mutant(tree, *mutant)
            with tried.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            print(
                f"{place}/{len(drawn)} {mutant[0]}:{record['line']} {record['result']}", flush=True
            )
    report([known[each] for each in drawn if each in known])


def copy_files(tree: Path, *of: str) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *of]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


@cache
def mutants(path: Path) -> tuple[Any, list[tuple[int, Any]]]:
    """A file's syntax tree, and mutmut's mutants of it with their lines."""
    import libcst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation import file_mutation

    class Visitor(file_mutation.MutationVisitor):
        def _skip_node_and_children(self, node: Any) -> bool:
            # mutmut cannot change decorated functions in place; a whole file can be written.
            decorated = isinstance(node, libcst.FunctionDef) and node.decorators
            return not decorated and super()._skip_node_and_children(node)

    def without_texts(operator: Any) -> Any:
        return lambda node: () if " " in getattr(node, "value", " ") else operator(node)

    operators = [
        (kind, without_texts(operator) if operator.__name__ == "operator_string" else operator)
        for kind, operator in file_mutation.mutation_operators
    ]
    wrapper = MetadataWrapper(libcst.parse_module(path.read_text()))
    visitor = Visitor(operators, file_mutation.IgnoredCode(set(), set(), set()))
    module = wrapper.visit(visitor)
    lines = wrapper.resolve(PositionProvider)
    return module, [
        (lines[each.original_node].start.line, each)
        for each in visitor.mutations
        if each.contained_by_top_level_function is not None and each.original_node in lines
    ]


def draw(tree: Path, count: int, seed: int) -> list[tuple[str, int]]:
    """Files and numbers of mutants, as many of each file as is its share of all."""
    files = code_files(tree)
    held = {path: len(mutants(path)[1]) for path in files}
    every = sum(held.values()) / count
    print(f"{sum(held.values())} mutants in {len(files)} files", flush=True)
    chance = random.Random(seed)
    start, drawn = chance.random() * every, []
    for path in files:
        numbers = list(range(held[path]))
        chance.shuffle(numbers)
        wanted = max(0, math.ceil((held[path] - start) / every))
        start += wanted * every - held[path]
        drawn += [(str(path.relative_to(tree)), number) for number in numbers[:wanted]]
    # In any order, so that the first are a sample, too.
    chance.shuffle(drawn)
    return drawn


def code_files(tree: Path) -> list[Path]:
    return sorted(path for each in CODE for path in (tree / each).rglob("*.py"))


@cache
def importers(tree: Path) -> dict[str, list[str]]:
    """For each file, the files that import its module."""
    importing: dict[str, list[str]] = {}
    for path in code_files(tree):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                name = node.module.replace(".", "/")
                for file in (f"{name}.py", f"{name}/__init__.py"):
                    importing.setdefault(file, []).append(str(path.relative_to(tree)))
    return importing


def tests_of(tree: Path, file: str) -> list[str]:
    """The module, for its doctests, and test files: its own, then those of its importers."""
    waiting, seen, tests = [file], {file}, {file: None}
    while waiting:
        path = Path(waiting.pop(0))
        folder = tree / "tests" / path.parent
        tests.update((str(one.relative_to(tree)), None) for one in own_tests(folder, path, tree))
        new = [each for each in importers(tree).get(str(path), []) if each not in seen]
        # Those beside it first.
        new.sort(key=lambda each: Path(each).parent != path.parent)
        waiting += new
        seen.update(new)
    return list(tests)


def own_tests(folder: Path, path: Path, tree: Path) -> list[Path]:
    """Tests named after a module, then those beside them named after none, if they import it."""
    every = sorted(folder.glob("test_*.py"))
    stems = {one.stem for one in (tree / path.parent).glob("*.py")}
    own = [one for one in every if one.stem.startswith(f"test_{path.stem}")]
    loose = [one for one in every if not any(one.stem.startswith(f"test_{s}") for s in stems)]
    names = [
        node.name
        for node in ast.parse((tree / path).read_text()).body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
    ]
    return own + [one for one in loose if any(name in one.read_text() for name in names)]


def try_mutant(tree: Path, file: str, number: int) -> dict[str, Any]:
    from mutmut.mutation.file_mutation import deep_replace

    path = tree / file
    source = path.read_text()
    module, planted = mutants(path)
    line, mutation = planted[number]
    changed: Any = deep_replace(module, mutation.original_node, mutation.mutated_node)
    change = difflib.unified_diff(source.splitlines(), changed.code.splitlines(), n=0)
    path.write_text(changed.code)
    started = time.monotonic()
    try:
        result = run_copy(tree, tests_of(tree, file))
    finally:
        path.write_text(source)
    seconds = round(time.monotonic() - started, 1)
    facts = {"file": file, "number": number, "line": line, "change": list(change)[3:]}
    return {**facts, "result": result, "seconds": seconds}


class UntilTime:
    """Ends the tests when the processor's time is up, as a plugin of pytest."""

    def pytest_runtest_logfinish(self) -> None:
        if time.process_time() > SECONDS:
            import pytest

            pytest.exit("the time is up", returncode=0)


def run_copy(tree: Path, tests: list[str]) -> str:
    """What becomes of the tests in a copy of this process."""
    child = os.fork()
    if not child:
        import pytest

        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (3 * SECONDS, 3 * SECONDS))
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True
        for name in [each for each in sys.modules if each.partition(".")[0] == "tests"]:
            del sys.modules[name]
        quiet = os.open(tree.parent / "last.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-k", SLOW]
        os._exit(int(pytest.main([*options, *tests], plugins=[UntilTime()])))
    ends = time.monotonic() + 12 * SECONDS
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            # Killed by a signal: it took all time or memory, which is noticed.
            return "killed" if os.waitstatus_to_exitcode(status) else "survived"
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return "killed"


def report(records: list[dict[str, Any]]) -> None:
    folder = [(str(Path(record["file"]).parent), record["result"]) for record in records]
    total, killed = Counter(name for name, _ in folder), Counter(folder)
    print("\n| folder | killed | of | share | 95% |\n|---|---|---|---|---|")
    rows = [(name, killed[name, "killed"], total[name]) for name in sorted(total)]
    for name, hits, count in [*rows, ("all", sum(row[1] for row in rows), len(records))]:
        low, high = wilson_interval(hits, count)
        print(f"| {name} | {hits} | {count} | {hits / count:.1%} | {low:.1%}-{high:.1%} |")
    for record in records:
        if record["result"] != "killed":
            print(f"\nsurvived: {record['file']}:{record['line']}", *record["change"], sep="\n")


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Of a share, 95% (Wilson, 1927)."""
    z = 1.96
    centre = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


if __name__ == "__main__":
    main()
