import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.core.settings import INTERRUPTED
from benchmarks.methods import select
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.results.images import ImageTable
from benchmarks.runs import sanity

NETWORK = """
import torch
from torch import nn
from benchmarks.networks.build import EmbeddingNetwork

def build():
    torch.manual_seed(0)
    features = nn.Sequential(
        nn.Conv2d(3, 8, 9, stride=8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU()
    )
    return EmbeddingNetwork(features, nn.Linear(12, 8, bias=False))
"""
METHODS = "ours_paper,layer_activation,saliency"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a network and a table of images with boxes."""
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@dataclass
class Checked:
    """A finished check: its folder, what it printed, and the images each method explained."""

    folder: Path
    printed: str
    explained: dict[str, list[str]]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    place = tmp_path_factory.mktemp("checked")
    prepare(place)
    explained: dict[str, list[str]] = {}
    original = sanity.maps_of

    def watched(bench: Any, name: str, key: str, image: Any) -> Any:
        explained.setdefault(name, []).append(key)
        return original(bench, name, key, image)

    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        patch.setattr(sanity, "maps_of", watched)
        assert run() == 0
    return Checked(place / "run", printed.getvalue(), explained)


def prepare(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    lines = ["image,label,x,y,width,height"]
    for label in (1, 2, 3, 4):
        for index in range(3):
            pixels = rng.integers(0, 255, (70, 80, 3)).astype(np.uint8)
            pixels[20:50, 20 + index : 60] = 50 * label
            Image.fromarray(pixels).save(folder / "data" / f"{label}-{index}.png")
            lines.append(f"{label}-{index}.png,{label},20,20,40,30")
    (folder / "data/boxes.csv").write_text("\n".join(lines) + "\n")
    (folder / "tiny_sanity_networks.py").write_text(NETWORK)


def run(output: str = "run", **changes: str) -> int:
    options = {
        "data": "data",
        "train-classes": "1-2",
        "test-classes": "3-4",
        "network": "tiny_sanity_networks:build",
        "methods": METHODS,
        "num-tuples": "4",
        # Above any difference of squared distances: no tuple is without a loss.
        "margin": "5",
        "limit": "3",
        "bank-images": "2",
        "num-resamples": "50",
        "device": "cpu",
        "output": output,
        **changes,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return main(["sanity", "--no-progress", *words])


def results(folder: Path | str = "run") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(folder, "sanity.json").read_text())
    return loaded


def test_every_method_is_compared_at_every_stage(checked: Checked) -> None:
    result = results(checked.folder)
    assert list(result["stages"]) == ["head", "last block", "all"]
    assert list(result["summary"]) == METHODS.split(",")
    assert result["num_images"] == 3
    assert result["data"]["train"]["images"] == 4
    assert "images" not in result, "they are a table of their own"
    images = ImageTable.read(checked.folder)
    for name, stages in result["summary"].items():
        for stage, figures in stages.items():
            rows = images.rows(stage, name)
            assert len(rows) == 3
            for figure in sanity.FIGURES:
                values = [row[figure] for row in rows]
                mean, low, high = figures[figure]
                assert mean == pytest.approx(np.mean(values))
                assert low <= mean <= high
    # A map of activations does not see the head, which is above them, and sees the others.
    activation = result["summary"]["layer_activation"]
    assert activation["head"]["rank_correlation"] == pytest.approx([1, 1, 1])
    assert activation["head"]["ssim"] == pytest.approx([1, 1, 1])
    assert activation["all"]["rank_correlation"][0] < 0.99
    assert activation["head"]["emprt"] == pytest.approx([0, 0, 0])
    assert activation["all"]["emprt"][0] != 0
    header, row = (checked.folder / "sanity.md").read_text().splitlines()[2:5:2]
    at = [cell.strip() for cell in header.split("|")].index("eMPRT")
    rise = result["summary"]["ours_paper"]["all"]["emprt"][0]
    assert row.split("|")[at].strip().startswith(f"{rise:.2f} [")
    # Ours does, through the bank that was built anew.
    assert result["summary"]["ours_paper"]["head"]["rank_correlation"][0] < 0.999
    assert "| Re-initialised" not in checked.printed
    for name in ("sanity.md", "sanity.png", "sanity.svg"):
        assert (checked.folder / name).stat().st_size > 500


def test_the_floor_is_the_map_of_another_image(checked: Checked) -> None:
    result = results(checked.folder)
    assert result["floor"] == sanity.FLOOR
    assert set(result["summary"]["layer_activation"]) == {*result["stages"], sanity.FLOOR}
    keys = checked.explained["layer_activation"]
    maps_per_image = len(result["stages"]) + 2
    images, others = keys[::maps_per_image], keys[maps_per_image - 1 :: maps_per_image]
    assert len(set(images)) == len(set(others)) == 3
    assert all(image != other for image, other in zip(images, others, strict=True))
    floor = result["summary"]["layer_activation"][sanity.FLOOR]["rank_correlation"]
    assert floor[0] < 0.99
    assert "another image" in (checked.folder / "sanity.md").read_text()


def test_an_interrupted_check_goes_on_to_the_same_numbers(
    checked: Checked, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = sanity.compare, []

    def interrupted(benches: Any, image: Any, other: Any, methods: Any) -> Any:
        calls.append(image.key)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(benches, image, other, methods)

    with monkeypatch.context() as patch:
        patch.setattr(sanity, "compare", interrupted)
        assert run("parts") == INTERRUPTED
    assert run("parts") == 0
    assert results("parts")["summary"] == results(checked.folder)["summary"]
    once, twice = (ImageTable.read(Path(folder)) for folder in (checked.folder, "parts"))
    assert once.table.equals(twice.table)


def test_another_check_in_the_same_folder_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(methods="saliency", limit="2") == 0
    assert run(methods="saliency", limit="2", **{"bank-images": "3"}) == 1
    assert "bank_images" in capsys.readouterr().err


def test_the_absolute_map_is_compared_at_the_size_of_the_crop(place: Path) -> None:
    class Plan:
        seed = 0

    class Bench:
        plan, device, protocol = Plan(), torch.device("cpu"), PROTOCOLS["boxes"]
        (method,) = select(["layer_grad_cam_loss"])
        explainers = {"m": (method, lambda query: torch.tensor([[[[-2.0, 1.0]]]]))}  # noqa: RUF012

        def query(self, key: str, image: torch.Tensor, question: Any) -> None:
            return None

    maps = sanity.maps_of(Bench(), "m", "a.png", torch.zeros(3, 1, 4))  # type: ignore[arg-type]
    np.testing.assert_allclose(maps.magnitude, [[2, 1.75, 1.25, 1]])
    np.testing.assert_allclose(maps.signed, [[-2, -1.25, 0.25, 1]])


def test_one_image_is_refused_as_the_floor_compares_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(limit="1") == 1
    assert "--limit is 1; expected 2 or more" in capsys.readouterr().err
