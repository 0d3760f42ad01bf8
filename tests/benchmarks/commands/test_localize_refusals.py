"""What localize refuses, leaves out or counts as missing."""

from pathlib import Path

import pytest

from benchmarks.__main__ import main

from .conftest import results, run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": "saliency,gradcam"}, "unknown method gradcam; known: core, fast, all"),
        ({"protocols": "pixels"}, "unknown protocol pixels; known: boxes, attention"),
        ({"test-classes": "3,9"}, "class"),
        ({"train-classes": None}, "--train-classes and --test-classes"),
        ({"data": "nowhere"}, "nowhere"),
        ({"checkpoint": "absent.safetensors", "network": None}, "no such checkpoint"),
        ({"layer": "features.9"}, "no layer 'features.9'"),
        ({"network": "tiny_networks:absent"}, "cannot import 'absent'"),
        ({"device": "tpu"}, "--device tpu"),
        ({"margin": "-1"}, "--margin"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    message: str,
) -> None:
    assert run(**change) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert not Path("run/records.jsonl").exists()


@pytest.mark.parametrize("command", ["localize", "faithfulness", "reductions", "sanity"])
def test_photographs_alone_are_refused_before_the_network_is_made(
    place: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    network = ["--network", "tiny_networks:absent", "--output", "run"]
    assert main([command, "--data", "data/images/003.Thing", *network]) == 1
    error = capsys.readouterr().err
    assert "There are 4 images without boxes and classes" in error
    assert "image,label,x,y,width,height" in error


def test_an_output_that_is_a_file_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").write_text("mine")
    assert run() == 1
    assert "cannot write there" in capsys.readouterr().err
    assert Path("run").read_text() == "mine"


def test_an_unreadable_image_is_a_counted_warning(place: Path) -> None:
    Path("data/images/003.Thing/9.png").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=r"9\.png"):
        assert run() == 0
    result = results()
    assert result["counts"]["unreadable"] == 1
    assert result["counts"]["measured"] == {"attention": 7, "boxes": 7}
    assert "9.png" in result["data"]["unreadable"][0]


def test_absent_images_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/images/003.Thing/9.png").unlink()
    assert run() == 0
    assert results()["data"]["test"]["absent"] == 1
    assert "1 listed but absent" in capsys.readouterr().out


def test_a_box_outside_the_crop_leaves_the_image_out_of_that_protocol_alone(place: Path) -> None:
    boxes = Path("data/bounding_boxes.txt")
    lines = boxes.read_text().splitlines()
    lines[8] = "9 0.0 0.0 72.0 3.0"
    boxes.write_text("\n".join(lines) + "\n")
    assert run() == 0
    counts = results()["counts"]
    assert counts["left_out"] == {"attention": 1, "boxes": 0}
    assert counts["measured"] == {"attention": 7, "boxes": 8}


def test_a_box_outside_its_image_is_refused_by_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = Path("data/bounding_boxes.txt")
    boxes.write_text(boxes.read_text().replace("9 10.0", "9 300.0"))
    assert run() == 1
    assert "003.Thing/9.png" in capsys.readouterr().err


def test_a_class_with_a_single_image_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (10, 11, 12):
        Path(f"data/images/003.Thing/{number}.png").unlink()
    assert run() == 1
    assert "3" in capsys.readouterr().err


def test_a_network_that_gives_nan_is_refused_with_the_image_s_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(network="tiny_networks:broken") == 1
    error = capsys.readouterr().err
    assert "NaN" in error
    assert ".png" in error


def test_a_method_that_cannot_serve_the_network_is_listed_with_the_reason(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(network="tiny_networks:without_relu", methods="saliency,guided_grad_cam") == 0
    assert "not available: GuidedGradCam: the network has no nn.ReLU" in capsys.readouterr().out
    result = results()
    assert "guided_grad_cam" not in result["summary"]
    (about,) = [m for m in result["methods"] if m["name"] == "guided_grad_cam"]
    assert "no nn.ReLU" in about["unavailable"]
    assert "no nn.ReLU" in Path("run/results.csv").read_text()
    assert "no nn.ReLU" in Path("run/results.md").read_text()
