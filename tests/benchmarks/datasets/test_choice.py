import functools
import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.__main__ import main
from benchmarks.core.settings import ClassNumbers, class_choice
from benchmarks.datasets import DatasetError
from benchmarks.datasets import choice as data_choice
from benchmarks.datasets.choice import DATA_HELP, DataChoice, choose_data, survey
from benchmarks.datasets.csv_folder import load_csv
from benchmarks.datasets.download import Archive, download_cub
from benchmarks.datasets.load import LAYOUTS
from benchmarks.methods.method import Method, Subject
from benchmarks.networks.build import EmbeddingNetwork
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.runs.evaluation import Bench, EvaluationPlan
from captum_embed import TripletForward
from captum_embed.errors import InputError


def write_cub(root: Path, num_classes: int = 4, with_split: bool = True) -> None:
    """Two images a class, the first for training."""
    lines: dict[str, list[str]] = {
        name: []
        for name in (
            "images.txt",
            "image_class_labels.txt",
            "bounding_boxes.txt",
            "classes.txt",
            "train_test_split.txt",
        )
    }
    for label in range(1, num_classes + 1):
        lines["classes.txt"].append(f"{label} {label}.Thing")
        for index in (1, 0):
            number = 2 * label - index
            name = f"{label}.Thing/{number}.png"
            (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(root / "images" / name)
            lines["images.txt"].append(f"{number} {name}")
            lines["image_class_labels.txt"].append(f"{number} {label}")
            lines["bounding_boxes.txt"].append(f"{number} 1 1 5 5")
            lines["train_test_split.txt"].append(f"{number} {index}")
    if not with_split:
        del lines["train_test_split.txt"]
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n")


def choose(root: Path | str, folder: Path, **options: Any) -> DataChoice:
    classes = [options.pop(f"{side}_classes", None) for side in ("train", "test")]
    return choose_data(str(root), *classes, folder, 0, progress=False, **options)


def numbers(choice: DataChoice) -> tuple[list[str], list[str]]:
    train, test = ([r.path.stem for r in side.records] for side in (choice.train, choice.test))
    return train, test


def test_the_official_split_takes_the_data_set_s_own_images(tmp_path: Path) -> None:
    write_cub(tmp_path / "data")
    choice = choose(tmp_path / "data", tmp_path, split="official")
    assert numbers(choice) == (["1", "3", "5", "7"], ["2", "4", "6", "8"])
    assert str(choice.train_classes) == str(choice.test_classes) == "1-4"


def test_the_zero_shot_split_halves_the_classes(tmp_path: Path) -> None:
    write_cub(tmp_path / "data")
    choice = choose(tmp_path / "data", tmp_path, split="zero-shot")
    assert numbers(choice) == (["1", "2", "3", "4"], ["5", "6", "7", "8"])
    assert (str(choice.train_classes), str(choice.test_classes)) == ("1-2", "3-4")


@pytest.mark.parametrize("split", ["official", "zero-shot"])
@pytest.mark.parametrize("side", ["train", "test"])
def test_classes_beside_another_split_are_refused_before_anything_is_read(
    tmp_path: Path, split: str, side: str
) -> None:
    with pytest.raises(InputError, match=f"--split {split} .* --{side}-classes 1-2 names"):
        choose(tmp_path / "absent", tmp_path, split=split, **{f"{side}_classes": CLASSES})


CLASSES = ClassNumbers.parse("1-2")


def test_a_data_set_without_an_official_split_says_so(tmp_path: Path) -> None:
    write_cub(tmp_path / "data", with_split=False)
    with pytest.raises(DatasetError, match="no official split"):
        choose(tmp_path / "data", tmp_path, split="official")
    with pytest.raises(InputError, match="--train-classes and --test-classes"):
        choose(tmp_path / "data", tmp_path, train_classes=CLASSES)


@pytest.fixture
def offline_cub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive that --download fetches, on this disk."""
    write_cub(tmp_path / "made")
    path = tmp_path / "cub.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "made", "CUB_200_2011")
    images = Archive(path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest(), "CUB_200_2011")
    local = functools.partial(download_cub, images=images, segmentations=None)
    monkeypatch.setattr(data_choice, "download_cub", local)
    return path


@pytest.mark.parametrize("data", ["data", "data/CUB_200_2011"])
def test_a_download_puts_the_data_set_where_it_is_looked_for_and_once(
    tmp_path: Path, offline_cub: Path, data: str
) -> None:
    classes = {"train_classes": CLASSES, "test_classes": ClassNumbers.parse("3")}
    with pytest.raises(DatasetError, match="no such folder"):
        choose(tmp_path / data, tmp_path, **classes)
    choice = choose(tmp_path / data, tmp_path, download=True, **classes)
    assert numbers(choice) == (["1", "2", "3", "4"], ["5", "6"])
    assert (tmp_path / "data" / "CUB_200_2011" / "images.txt").is_file()
    offline_cub.unlink()
    assert numbers(choose(tmp_path / data, tmp_path, download=True, **classes)) == numbers(choice)


def test_a_data_set_of_another_layout_is_not_downloaded_over(
    tmp_path: Path, offline_cub: Path
) -> None:
    write_cub(tmp_path / "data")
    offline_cub.unlink()
    choose(tmp_path / "data", tmp_path, split="zero-shot", download=True)
    assert not (tmp_path / "data" / "CUB_200_2011").exists()


def test_the_embedded_set_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--data embedded is generated locally"):
        choose("embedded", tmp_path, download=True)


def test_help_names_every_layout_and_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(name in DATA_HELP and layout.sign in DATA_HELP for name, layout in LAYOUTS.items())
    for command in ("localize", "train"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "boxes.csv" in text
        assert "{classes,official,zero-shot}" in text
        assert "resnet50@random" in text


def test_the_budget_and_seed_of_a_plan_reach_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Subject] = []

    def build(subject: Subject) -> Any:
        seen.append(subject)
        return lambda query: torch.ones(1, 1, 2, 2)

    method = Method("probe", "Probe", "control", "the subject", build)
    monkeypatch.setattr("benchmarks.runs.evaluation.select", lambda names: [method])
    network = EmbeddingNetwork(nn.Conv2d(3, 4, 3), nn.Identity())
    plan = EvaluationPlan(
        network="unused",
        checkpoint=None,
        layer="features",
        methods=("probe",),
        protocols=("boxes",),
        margin=0.2,
        seed=7,
        device="cpu",
        cache=tmp_path,
        budget=33,
    )
    Bench(plan, PROTOCOLS["boxes"], TripletForward(network), network.features)
    assert (seen[0].budget, seen[0].seed) == (33, 7)


def test_an_image_whose_mask_is_bad_is_left_out_before_work_starts(tmp_path: Path) -> None:
    lines = ["image,label,x,y,width,height,mask"]
    for name, mask_size in (("a.png", (6, 5)), ("b.png", (5, 6))):
        Image.new("RGB", (6, 5)).save(tmp_path / name)
        Image.new("L", mask_size, 255).save(tmp_path / f"mask-{name}")
        lines.append(f"{name},{name[0]},0,0,2,2,mask-{name}")
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    classes = ClassNumbers.parse("1-2")
    everything = load_csv(tmp_path)
    with pytest.warns(UserWarning, match="left out: .*mask-b.png: the mask is 5x6"):
        kept = survey(DataChoice(everything, everything, classes, classes), progress=False)
    assert [record.key for record in kept.test.records] == ["a.png"]
    assert len(kept.unreadable) == 1


@pytest.mark.parametrize("numbered", [False, True])
def test_classes_are_chosen_by_name(tmp_path: Path, numbered: bool) -> None:
    if numbered:
        write_cub(tmp_path)
        for path in ("classes.txt", "images.txt"):
            text = (tmp_path / path).read_text()
            for number, name in enumerate(("owl", "jay", "house wren", "jay"), start=1):
                text = text.replace(f"{number}.Thing", f"{number}.{name}")
            (tmp_path / path).write_text(text)
        for folder, name in (("1", "owl"), ("2", "jay"), ("3", "house wren"), ("4", "jay")):
            (tmp_path / "images" / f"{folder}.Thing").rename(
                tmp_path / "images" / f"{folder}.{name}"
            )
    else:
        lines = ["image,label,x,y,width,height"]
        for number, name in enumerate(["owl", "jay", "house wren", "ibis"] * 2):
            Image.new("RGB", (9 + number, 9)).save(tmp_path / f"{number}.png")
            lines.append(f"{number}.png,{name},1,1,5,5")
        (tmp_path / "boxes.csv").write_text("\n".join(lines))
    choice = choose(
        tmp_path,
        tmp_path,
        train_classes=class_choice("owl"),
        test_classes=class_choice("house wren, 2.jay" if numbered else "house wren,jay"),
    )
    assert {record.class_name for record in choice.train.records} in ({"owl"}, {"1.owl"})
    assert len(choice.train) == 2
    assert len(choice.test) == 4
    assert str(choice.test_classes) == ("2-3" if numbered else "1,3")
    for wrong, why in (("jay", "several classes have"), ("Owl", "no class with images has")):
        if not numbered and wrong == "jay":
            continue
        with pytest.raises(DatasetError, match=rf"{why} the name '{wrong}'.*house wren"):
            choose(
                tmp_path,
                tmp_path,
                train_classes=class_choice(wrong),
                test_classes=class_choice("owl"),
            )
