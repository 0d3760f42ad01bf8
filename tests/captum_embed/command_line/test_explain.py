import base64
import io
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_embed import SimilarityForward, TripletForward, WeightBank, recipes
from captum_embed.command_line.images import read_image
from captum_embed.command_line.main import main
from captum_embed.command_line.networks import load_network
from captum_embed.visualization import signed_overlay

from .conftest import TINY, draw


class Collected(HTMLParser):
    """Tags, what they load, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.events: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "data")]
        self.events += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words += data


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["explain", *words, *TINY, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def require_equal(array: Any, attribution: Any) -> None:
    expected = attribution[0, 0].numpy()
    np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_maps_are_those_of_the_library(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bank", "build", "birds", *TINY, "--output", "birds.bank"]) == 0
    result = explained(
        capsys, "query.png", "--reference", "hit.png", "--foil", "birds/jay",
        "--bank", "birds.bank", "--neighbors", "6",
    )  # fmt: skip
    network = load_network("cli_tiny_networks:small", device="cpu")
    preprocessing = network.preprocessing.replaced(image_size=32)

    def tensor(*paths: str) -> torch.Tensor:
        pictures = (preprocessing.picture(read_image(path)) for path in paths)
        return torch.stack([preprocessing.tensor(picture) for picture in pictures])

    encoder, layer = network.encoder, network.encoder[1]
    foils = tensor(*(f"birds/jay/{n}.png" for n in (0, 2, 4)))
    forward = SimilarityForward(encoder, tensor("hit.png"), foils)
    bank = WeightBank.load("birds.bank")
    expected = {
        "reference": recipes.EXPLAIN.grad_cam(forward, layer),
        "bank": recipes.EXPLAIN.grad_cam(TripletForward(encoder), layer, weight_bank=bank),
    }
    image, reference = result["images"]
    assert (image["role"], reference["role"]) == ("image", "reference")
    for way, grad_cam in expected.items():
        record = image["maps"][way]
        array = np.load(Path("explanations") / record["map"], allow_pickle=False)
        attribution = grad_cam.attribute(tensor("query.png"))
        require_equal(array, attribution)
        overlay = np.asarray(Image.open(Path("explanations") / record["overlay"]))
        drawn = signed_overlay(preprocessing.picture(read_image("query.png")), attribution)
        assert np.abs(overlay / 255 - drawn).max() < 0.01
    assert image["maps"]["reference"]["similarity"] == pytest.approx(
        forward(tensor("query.png")).item()
    )
    keys = [one["key"] for one in image["maps"]["bank"]["neighbors"]]
    nearest = expected["bank"].neighbors(tensor("query.png")).keys
    assert [keys] == nearest
    assert {one["class"] for one in image["maps"]["bank"]["neighbors"]} == {"jay", "wren"}
    # The other side of the pair: the same score, seen from the reference.
    back = SimilarityForward(encoder, tensor("query.png"), foils)
    array = np.load(Path("explanations") / reference["maps"]["reference"]["map"])
    require_equal(array, recipes.EXPLAIN.grad_cam(back, layer).attribute(tensor("hit.png")))


def test_no_more_entries_lend_than_there_are_of_one_class(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bank", "build", "birds", *TINY, "--output", "b"]) == 0
    for exclude, count in (
        ((), 3),
        (("jay/0.png",), 3),
        (("jay/0.png", "wren/1.png"), 2),
        (
            ("jay",),
            3,
        ),
    ):
        options = ["--exclude", *exclude] if exclude else []
        result = explained(capsys, "query.png", "--bank", "b", "--force", *options)
        borrowed = result["images"][0]["maps"]["bank"]["neighbors"]
        assert len(borrowed) == count
        words = ["bank", "neighbors", "query.png", "--bank", "b", *TINY, "--json", *options]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)[0]["neighbors"] == borrowed


def test_an_image_against_itself_is_said_and_drawn_grey(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for foils, same in (([], True), (["--foil", "birds/jay"], False)):
        result = explained(capsys, "query.png", "--reference", "query.png", "--force", *foils)
        for image in result["images"]:
            record = image["maps"]["reference"]
            assert record["same"] == same
            assert (record["full_colour"] == 0) == same
        page = Path("explanations/index.html").read_text()
        assert ("the same to the network, so no place makes a difference" in page) == same


def test_the_page_holds_everything_and_names_do_no_harm(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = [
        "<img src=x onerror=alert(1)>.png",
        "{{ 7 * 7 }}.png",
        '"quoted"&amp;.png',
        "a\nb.png",
    ]
    hostile += [os.fsdecode(b"\xff\xfe.png"), "x" * 200 + ".png", "..png", "été.png"]
    for seed, name in enumerate(hostile):
        draw(birds / "odd" / "plain.png", seed).rename(birds / "odd" / name)
    result = explained(
        capsys, *(f"odd/{name}" for name in hostile), "--reference", "odd", "hit.png"
    )
    page = Collected((birds / "explanations" / "index.html").read_text(encoding="utf-8"))
    assert not page.events
    assert not page.tags & {"script", "link", "iframe", "object", "base", "a"}
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    Image.open(io.BytesIO(base64.b64decode(page.loads[0].partition(",")[2]))).verify()
    for name in ("<img src=x onerror=alert(1)>.png", "{{ 7 * 7 }}.png", '"quoted"&amp;.png'):
        assert f"odd/{name}" in page.words
    assert "a\\nb.png" in page.words
    written = {path.name for path in (birds / "explanations" / "overlays").iterdir()}
    assert len(written) == len(hostile) == len(result["images"])
    assert all(name.isascii() and len(name) < 60 for name in written)
    here = {path.name for path in birds.iterdir()} - {"__pycache__"}
    assert here == {"birds", "explanations", "hit.png", "odd", "query.png", "cli_tiny_networks.py"}


def test_a_folder_of_its_own_is_replaced_and_no_other(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explained(capsys, "birds/jay", "--reference", "hit.png")
    kept = birds / "explanations" / "note.txt"
    kept.write_text("mine")
    result = explained(capsys, "query.png", "--reference", "hit.png")
    files = {p.relative_to(birds / "explanations").as_posix() for p in birds.rglob("*") if
             p.is_file() and p.is_relative_to(birds / "explanations")}  # fmt: skip
    assert files == {*result["files"], "results.json", "note.txt"}
    # What an altered record names is not removed.
    record = birds / "explanations" / "results.json"
    wished = {**json.loads(record.read_text()), "files": ["../query.png", "maps/../note.txt"]}
    record.write_text(json.dumps(wished))
    explained(capsys, "query.png", "--reference", "hit.png")
    assert kept.exists()
    assert (birds / "query.png").exists()

    words = ["explain", "query.png", "--reference", "hit.png", *TINY, "--output"]
    assert main([*words, "birds"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*words, "birds", "--force"]) == 0
    assert (birds / "birds" / "jay" / "0.png").exists()
    assert main([*words, "hit.png"]) == 1


def test_nothing_is_written_before_all_fits(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bank", "build", "birds", *TINY, "--output", "birds.bank"]) == 0
    (birds / "broken.png").write_bytes((birds / "hit.png").read_bytes()[:300])
    reference, bank = ("--reference", "hit.png"), ("--bank", "birds.bank")
    network = (*TINY[:2], "--quiet")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("absent.png", *reference, *TINY), "absent.png"),
        (("broken.png", *reference, *TINY), "cannot be read as an image"),
        (("query.png", "--reference", "broken.png", *TINY), "cannot be read as an image"),
        (("query.png", *reference, *network, "--layer", "7"), "it has 0, 1, 2, 3"),
        (("query.png", *reference, *network), "layer"),
        (("query.png", *reference, *TINY, "--checkpoint", "absent"), "no checkpoint file absent"),
        (("query.png", *bank, *network, "--layer", "0"), "built for the layer '1'"),
        (("query.png", *bank, *network, "--explains", "loss"), "give --explains match"),
        (("query.png", *bank, *network, "--image-size", "40"), "--image-size"),
        (("query.png", *bank, *network, "--layout", "tokens"), "built for the layout"),
        (
            ("query.png", *bank, "--network", "cli_tiny_networks:other", "--quiet"),
            "built with other weights",
        ),
        (("query.png", "--bank", "birds", *network), "not a weight bank"),
        (("query.png", *bank, *network, "--exclude", "finch"), "finch"),
        (("query.png", *bank, *network, "--bank-images", "absent"), "absent"),
        (("query.png", *bank, *network, "--neighbors", "7"), "from 1 to 6"),
        (("query.png", *reference, *network, "--layer", "1", "--std", "0", "1", "1"), "std"),
        (("query.png", *reference, *network, "--layer", "1", "--layout", "tokens"), "tokens"),
    ]
    for words, message in cases:
        capsys.readouterr()
        assert main(["explain", *words]) == 1, words
        shown = capsys.readouterr()
        assert message in shown.err
        assert shown.err.startswith("error: ")
        assert not shown.out
        assert not (birds / "explanations").exists(), words


def test_without_what_is_needed_nothing_starts(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = ("--reference", "hit.png")
    for words in (
        (),
        ("explain",),
        ("bank",),
        ("explain", "query.png", *TINY),
        ("explain", "query.png", *reference),
        ("explain", "query.png", "--bank", "b", "--foil", "hit.png", *TINY),
        ("explain", "query.png", *reference, "--neighbors", "3", *TINY),
        (
            "explain",
            "query.png",
            *reference,
            "--grid",
            "2",
            "2",
            "--layout",
            "channels_last",
            *TINY,
        ),
        ("explain", "query.png", *reference, *TINY, "--weights", "a", "--checkpoint", "b"),
        ("explain", "query.png", *reference, *TINY, "--recipe", "best"),
        ("bank", "neighbors", "query.png", "--bank", "b", "--neighbors", "0", *TINY),
        ("bank", "build", "birds", *TINY, "--output", "b", "--mining", "all", "--num-tuples", "3"),
    ):
        assert main(words) == 2, words
        assert "captum-embed" in capsys.readouterr().err


def test_a_neighbour_of_a_hostile_key_shows_no_picture(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bank", "build", "birds", *TINY, "--output", "birds.bank"]) == 0
    bank = WeightBank.load("birds.bank")
    draw(birds / "secret.png", 3)
    keys = ["../secret.png", str(birds / "secret.png"), "jay/0.png", ".", "jay", "<b>"]
    WeightBank(bank.embeddings, bank.weights, bank.labels, keys, bank.metadata).save("odd.bank")
    explained(
        capsys, "query.png", "--bank", "odd.bank", "--bank-images", "birds", "--neighbors", "6"
    )
    page = Collected((birds / "explanations" / "index.html").read_text())
    # The picture, its map, and the one neighbour that lies in the folder.
    assert len(page.loads) == 3
    assert "../secret.png" in page.words
    assert "b" not in page.tags


def test_an_interrupted_run_leaves_whole_files_and_can_be_repeated(
    birds: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from captum_embed.command_line import explain

    drawn = []

    def interrupted(*arguments: Any) -> Any:
        drawn.append(arguments)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return signed_overlay(*arguments)

    monkeypatch.setattr(explain, "signed_overlay", interrupted)
    words = ["explain", "birds", "--reference", "hit.png", *TINY]
    assert main(words) == 130
    folder = birds / "explanations"
    assert len(list((folder / "overlays").iterdir())) == 2
    assert json.loads((folder / "results.json").read_text())["complete"] is False
    assert not list(folder.rglob(".part-*"))
    monkeypatch.undo()
    monkeypatch.chdir(birds)
    assert main(words) == 0
    assert len(list((folder / "overlays").iterdir())) == 6
