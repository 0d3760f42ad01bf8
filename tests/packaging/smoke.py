"""Builds the sdist, and from it the wheel, and tries the wheel where nothing else is installed.

``python tests/packaging/smoke.py``. The environment sees the packages that the wheel declares,
and theirs, by links to those of this interpreter (torch alone is gigabytes), and no others: what
is needed and not declared fails.
"""

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python")
TRY = """
import importlib, pathlib, pkgutil, sys, numpy, torch
from torch import nn
import captum_embed
from captum_embed.command_line.main import main

assert str(pathlib.Path(captum_embed.__file__)).startswith(sys.prefix), captum_embed.__file__
for name in captum_embed.__all__:
    getattr(captum_embed, name)
for module in pkgutil.walk_packages(captum_embed.__path__, "captum_embed."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
grad_cam = captum_embed.EmbeddingLayerGradCam(captum_embed.TripletForward(encoder), encoder[0])
maps = grad_cam.attribute(tuple(torch.rand(3, 2, 3, 8, 8)))
assert [tuple(one.shape) for one in maps] == [(2, 1, 6, 6)] * 3

from PIL import Image
for name in ("query", "hit"):
    noise = numpy.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(f"{name}.png")
pathlib.Path("networks.py").write_text(
    "from torch import nn\\n"
    "def make():\\n"
    "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\\n"
)
words = "explain query.png --reference hit.png --network networks:make --layer 0 --image-size 32"
assert main([*words.split(), "--quiet"]) == 0
assert "data:image" in pathlib.Path("explanations/index.html").read_text()
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
        (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
        with tarfile.open(sdist) as archive:
            of_sdist = {name.partition("/")[2] for name in archive.getnames()}
        for needed in (
            "README.md",
            "LICENSE",
            "CHANGELOG.md",
            "tests/conftest.py",
            "docs/index.md",
        ):
            require(needed in of_sdist, f"the sdist lacks {needed}")
        with zipfile.ZipFile(wheel) as archive:
            of_wheel = set(archive.namelist())
        for file in files_of_the_package():
            require(file in of_sdist, f"the sdist lacks {file}")
            require(file in of_wheel, f"the wheel lacks {file}")
        metadata = require_metadata(wheel)
        python = environment(folder / "empty", wheel, metadata)
        work = folder / "work"
        work.mkdir()
        run(*PIP, python, "check", cwd=work)
        run(python.parent / "captum-embed", "--help", cwd=work)
        run(python, "-c", TRY, cwd=work)
    print(f"{sdist.name} and {wheel.name}: built, installed and tried")


def files_of_the_package() -> list[str]:
    """Modules, templates and the marker of types, as they lie in the checkout."""
    paths = [path for path in (ROOT / "captum_embed").rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.suffix != ".pyc")


def require_metadata(wheel: Path) -> Message:
    """The wheel's metadata; its readme shows without the repository."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
        inside = {n.partition("/")[0] for n in archive.namelist()} - {name.partition("/")[0]}
    require(inside == {"captum_embed"}, f"the wheel holds {inside}")
    readme = str(metadata.get_payload())
    for relative in ("](docs/", 'src="docs/', "](CONTRIBUTING"):
        require(relative not in readme, f"a package index cannot follow {relative!r} in the readme")
    require("https://raw.githubusercontent.com/" in readme, "the readme has no picture")
    return metadata


def environment(folder: Path, wheel: Path, metadata: Message) -> Path:
    """The interpreter of a new environment: the wheel, and what it declares."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    links = folder / "declared"
    links.mkdir()
    for name in declared(metadata.get_all("Requires-Dist", [])):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or () if file.parts[0] != ".."}:
            if not (links / top).exists() and top != "__pycache__":
                (links / top).symlink_to(package.locate_file(top))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "declared.pth").write_text(f"{links}\n")
    run(*PIP, python, "install", "--quiet", "--no-deps", wheel)
    return python


def declared(lines: list[str]) -> set[str]:
    """The distributions that requirements bring, and those that these bring."""
    names: set[str] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        context = {**default_environment(), "extra": ""}
        if name in names or (requirement.marker and not requirement.marker.evaluate(context)):
            continue
        names.add(name)
        waiting += [Requirement(line) for line in requires(name) or ()]
    return names


def run(*command: object, cwd: Path = ROOT) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, text=True, capture_output=True, check=False
    )
    shown = " ".join(str(word).partition("\n")[0] for word in command)
    require(done.returncode == 0, f"{shown}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def require(fits: bool, message: str) -> None:
    if not fits:
        sys.exit(f"smoke test failed: {message}")


if __name__ == "__main__":
    main()
