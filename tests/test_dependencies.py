"""What is imported is declared: each package is imported beside its declared dependencies alone."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# Refuses the modules of every distribution that is not declared, as if it were not installed.
ISOLATED = """
import json, sys
hidden = set(json.loads(sys.argv[1]))
class Declared:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in hidden:
            return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Declared(finder) for finder in sys.meta_path]
import importlib, pkgutil
package = importlib.import_module(sys.argv[2])
for module in pkgutil.walk_packages(package.__path__, sys.argv[2] + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extras: tuple[str, ...]) -> set[str]:
    """Distributions that an installation with these extras brings, by their canonical names."""
    names: set[str] = set()
    waiting = [("captum-embed", extras)]
    while waiting:
        name, wanted = waiting.pop()
        if canonical(name) in names and not wanted:
            continue
        names.add(canonical(name))
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [
            (requirement.name, tuple(requirement.extras))
            for requirement in map(Requirement, lines)
            if any(applies(requirement.marker, extra) for extra in ("", *wanted))
        ]
    return names


def applies(marker: Marker | None, extra: str) -> bool:
    return marker is None or marker.evaluate({"extra": extra})


@pytest.mark.parametrize(
    ("package", "extras"), [("captum_embed", ()), ("benchmarks", ("benchmarks",))]
)
def test_a_package_imports_nothing_that_is_not_declared(
    package: str, extras: tuple[str, ...]
) -> None:
    allowed = declared(extras)
    hidden = [
        module
        for module, owners in packages_distributions().items()
        if not any(canonical(owner) in allowed for owner in owners)
    ]
    assert "pytest" in hidden
    done = subprocess.run(
        [sys.executable, "-c", ISOLATED, json.dumps(hidden), package],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_core_imports_without_torchvision() -> None:
    assert "torchvision" not in declared(())
