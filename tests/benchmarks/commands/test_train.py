from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision import models

from benchmarks.__main__ import main
from benchmarks.core.settings import INTERRUPTED
from benchmarks.datasets.cub import load_cub
from benchmarks.networks import build
from benchmarks.networks.build import (
    EmbeddingNetwork,
    build_network,
    embedding_network,
    lite0_network,
    load_checkpoint,
)
from benchmarks.training import train as training
from benchmarks.training.retrieval import embed, recall_at_1
from captum_embed.command_line.images import Preprocessing
from captum_embed.command_line.networks import LoadedNetwork
from captum_embed.errors import InputError

STEPS = 4


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four classes of plain colours, three images each, in the CUB layout."""
    rng = np.random.default_rng(0)
    tables: dict[str, list[str]] = {
        name: []
        for name in ("images.txt", "image_class_labels.txt", "bounding_boxes.txt", "classes.txt")
    }
    for label in range(1, 5):
        tables["classes.txt"].append(f"{label} {label:03}.Colour")
        colour = rng.integers(0, 255, 3)
        for index in range(3):
            number = 3 * (label - 1) + index + 1
            name = f"{label:03}.Colour/{number}.png"
            path = tmp_path / "data" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(colour + rng.integers(-40, 40, (40, 40, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            tables["images.txt"].append(f"{number} {name}")
            tables["image_class_labels.txt"].append(f"{number} {label}")
            tables["bounding_boxes.txt"].append(f"{number} 1 1 30 30")
    for name, lines in tables.items():
        (tmp_path / "data" / name).write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    # Crops of 64 instead of 224: what is tested does not depend on it.
    resized = training.transforms.RandomResizedCrop
    monkeypatch.setattr(
        training.transforms, "RandomResizedCrop", lambda size, **options: resized(64, **options)
    )
    return tmp_path


def run(output: str = "net.safetensors", **changes: str) -> int:
    options = {
        "data": "data",
        "train-classes": "1-3",
        "output": output,
        "embedding-dim": "8",
        "steps": str(STEPS),
        "classes-per-batch": "2",
        "images-per-class": "2",
        "save-every": "1",
        "device": "cpu",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return main(["train", "--no-progress", *words])


def test_training_writes_a_checkpoint_that_loads_and_says_how_it_was_made(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(test_classes="4") == 0
    network = load_checkpoint("net.safetensors")
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 8)
    start = lite0_network(8, seed=0)
    assert not torch.equal(network.head.weight, start.head.weight)
    assert not torch.equal(network.features.stem[0].conv.weight, start.features.stem[0].conv.weight)
    with safe_open("net.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == "efficientnet-lite0"
    assert metadata["normalize"] == "l2"
    assert metadata["embedding_dim"] == "8"
    assert metadata["recall_at_1"].startswith("1.0000 on 3 images")
    assert "recall@1 after training, 3 images" in capsys.readouterr().out
    assert [p.name for p in place.iterdir() if "safetensors" in p.name] == ["net.safetensors"]


def test_an_interrupted_training_goes_on_to_the_same_weights(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("whole.safetensors") == 0
    original = training.Trainer.train_step

    def interrupted(self, images, labels):
        if self.step == 2:
            raise KeyboardInterrupt
        return original(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "train_step", interrupted)
        assert run("parts.safetensors") == INTERRUPTED
    assert not Path("parts.safetensors").exists()
    assert run("parts.safetensors") == 0
    assert "going on from step 2 of 4" in capsys.readouterr().out
    whole, parts = load_file("whole.safetensors"), load_file("parts.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_unfinished_training_with_other_settings_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = training.Trainer.train_step

    def interrupted(self, images, labels):
        if self.step == 1:
            raise KeyboardInterrupt
        return original(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(training.Trainer, "train_step", interrupted)
        run()
    assert run(margin="0.5") == 1
    assert "margin: 0.2 there, 0.5 here" in capsys.readouterr().err


def test_another_file_in_the_place_of_the_training_state_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.ones(1)}, "net.training.safetensors")
    assert run() == 1
    assert "not a training state" in capsys.readouterr().err


def test_training_lowers_the_loss(place: Path) -> None:
    settings = training.TrainSettings(
        data=Path("data"),
        train_classes=training.ClassNumbers((1, 2, 3)),
        output=Path("net.safetensors"),
        embedding_dim=8,
        device="cpu",
    )
    trainer = training.Trainer(lite0_network(8), settings)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    losses = [trainer.train_step(images, labels) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    assert not trainer.network.training, "batch normalisation must keep its statistics"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "net.pth"}, "must end in .safetensors"),
        ({"train-classes": "1-9"}, "class"),
        ({"test-classes": "3-4"}, "class 3 is also trained on"),
        ({"data": "nowhere"}, "nowhere"),
        ({"smallest-crop": "0"}, "--smallest-crop is 0.0"),
        ({"initial": "absent.safetensors"}, "no such checkpoint"),
        ({"train-classes": "1"}, "two classes or more"),
    ],
)
def test_bad_input_is_refused_before_training(
    place: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    assert run(**change) == 1
    assert message in capsys.readouterr().err
    assert not list(place.glob("*.safetensors"))


def test_a_training_that_ends_with_nan_writes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(learning_rate="1e30", head_learning_rate="1e30") != 0
    assert "learning-rate" in capsys.readouterr().err
    assert not Path("net.safetensors").exists()


def test_an_existing_checkpoint_is_not_overwritten(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.safetensors").write_bytes(b"precious")
    assert run() == 1
    assert "exists" in capsys.readouterr().err
    assert Path("net.safetensors").read_bytes() == b"precious"


def test_an_unreadable_image_is_left_out_with_a_warning(place: Path) -> None:
    Path("data/images/001.Colour/1.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1\.png"):
        assert run() == 0


def test_recall_counts_images_whose_nearest_other_image_is_of_their_class() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 3, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    right = 0
    for i in range(40):
        distances = ((points - points[i]) ** 2).sum(1)
        distances[i] = torch.inf
        right += int(labels[distances.argmin()] == labels[i])
    assert 0 < right < 40
    assert recall_at_1(points, labels) == right / 40
    with pytest.raises(InputError, match="two images or more"):
        recall_at_1(points[:1], labels[:1])


def test_embedding_leaves_the_network_in_its_mode(place: Path) -> None:
    network = EmbeddingNetwork(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)), torch.nn.Identity()
    ).train()
    records = load_cub("data").records[:3]
    embeddings, labels = embed(network, records, batch_size=2, progress=False)
    assert embeddings.shape == (3, 4)
    assert labels.tolist() == [1, 1, 1]
    assert network.training
    assert network.features[1].num_batches_tracked == 0


def test_a_torchvision_network_is_trained_on_named_classes_and_loads_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"train_classes": "001.Colour,002.Colour,003.Colour", "test_classes": "004.Colour"}
    assert run(network="resnet18@random", steps="1", **names) == 0
    network = build_network("resnet18", "net.safetensors")
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 8)
    start = embedding_network("resnet18@random", embedding_dim=8, seed=0)
    assert not torch.equal(network.features.conv1.weight, start.features.conv1.weight)
    with safe_open("net.safetensors", "pt") as file:
        assert file.metadata()["architecture"] == "resnet18"
        assert file.metadata()["train_classes"].endswith(" 1-3")
    assert run(output="other.safetensors", train_classes="001.Colour,Colour") == 1
    assert "several classes have the name 'Colour'" in capsys.readouterr().err


def test_a_transformer_is_trained_and_loads_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, **options: object) -> LoadedNetwork:
        torch.manual_seed(0)
        network = models.VisionTransformer(64, 16, 2, 2, 24, 32)
        network.heads = torch.nn.Identity()
        return LoadedNetwork(name, network.eval(), Preprocessing(64, 64))

    monkeypatch.setattr(build, "load_network", load)
    assert run(network="torchvision:vit", steps="1", mining="hardest", margin="4") == 0
    images = torch.randn(2, 3, 64, 64)
    trained = build_network("torchvision:vit", "net.safetensors")
    start = embedding_network("torchvision:vit", embedding_dim=8, seed=0)
    assert trained(images).shape == (2, 8)
    assert not torch.allclose(trained(images), start(images))
    names = dict(trained.named_parameters())
    assert all(
        not torch.equal(names[name], own)
        for name, own in start.named_parameters()
        if name.endswith("mlp.0.weight")
    )


def test_training_on_the_zero_shot_split_names_its_classes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"data": "data", "output": "net.safetensors", "embedding-dim": "8", "steps": "1"}
    batch = {"classes-per-batch": "2", "images-per-class": "2", "device": "cpu"}
    words = [w for name, value in {**options, **batch}.items() for w in (f"--{name}", value)]
    assert main(["train", "--no-progress", *words]) == 1
    assert "say which classes to train on" in capsys.readouterr().err
    assert main(["train", "--no-progress", "--split", "zero-shot", *words]) == 0
    with safe_open("net.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["train_classes"].endswith(" 1-2")
    assert metadata["recall_at_1"].endswith(" 3-4")
