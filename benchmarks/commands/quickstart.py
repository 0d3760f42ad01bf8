"""``python -m benchmarks quickstart``: train a small embedding network, and compare maps of it.

The network never sees the classes that it is tested on. Two questions are asked of every map: where
is the object, and what does the match rest on? The run is one of ``localize`` otherwise, with its
files and its page.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save_file

from benchmarks.core.files import write_atomically
from benchmarks.core.settings import names, positive_int, setting
from benchmarks.datasets.choice import EMBEDDED, survey
from benchmarks.datasets.preprocess import resize_center_crop, to_tensor
from benchmarks.datasets.records import load_rgb
from benchmarks.networks.build import EMBEDDING_DIM, packaged_state
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.report.questions import SENTENCES, two_questions
from benchmarks.results.summary import FLOORS
from benchmarks.runs.folder import resumable
from benchmarks.runs.localize import chosen_data, localize
from benchmarks.runs.settings import LocalizeSettings
from benchmarks.training.retrieval import recall_at_1
from benchmarks.training.tail import TailTraining, in_batches, split, train_tail
from benchmarks.training.train import TrainSettings, starting_network
from captum_embed.command_line.networks import chosen_device
from captum_embed.errors import InputError

CHECKPOINT = "network.safetensors"
# With the usual margin of 0.2 hardly a triplet has a loss from the start.
MARGIN = 0.5


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings(LocalizeSettings):
    command: ClassVar[str] = "quickstart"

    data: str = setting("as for localize", default=EMBEDDED)
    methods: tuple[str, ...] = setting(
        "names separated by commas; core, fast, all and variants stand for several",
        default=tuple(name for name in SENTENCES if name not in FLOORS),
        parse=names,
    )
    protocols: tuple[str, ...] = setting(
        f"of {', '.join(PROTOCOLS)}; boxes and mosaic among them",
        default=("boxes", "mosaic"),
        parse=names,
    )
    limit: int | None = setting("test images at most", default=30, parse=positive_int)
    num_mosaics: int = setting("squares of four test images", default=12, parse=positive_int)
    steps: int = setting(
        "batches that the last blocks and the head are trained on", default=15, parse=positive_int
    )


def train_network(settings: QuickstartSettings, path: Path) -> None:
    """Train the last blocks and a new head on the training classes, and tell what it changes.

    Raises:
        InputError: a class with a single image.
    """
    network = starting_network(
        TrainSettings(
            data=settings.data,
            output=path,
            network=settings.network,
            embedding_dim=settings.embedding_dim or EMBEDDING_DIM,
            seed=settings.seed,
        )
    )
    network.to(chosen_device(settings.device)).to(memory_format=torch.channels_last)
    data = survey(chosen_data(settings), progress=settings.progress)
    trunk, tail = split(network)
    seen, unseen = (
        in_batches(
            trunk,
            [to_tensor(resize_center_crop(load_rgb(record))) for record in images.records],
            f"{what} images",
            progress=settings.progress,
        )
        for what, images in (("training", data.train), ("test", data.test))
    )
    labels = torch.tensor(data.test.labels)
    before = recall_at_1(in_batches(tail, unseen).cpu(), labels)
    training = TailTraining(settings.steps, MARGIN, seed=settings.seed)
    train_tail(tail, seen, data.train.labels, training, progress=settings.progress)
    after = recall_at_1(in_batches(tail, unseen).cpu(), labels)
    print(
        f"trained on {len(data.train)} images of classes {data.train_classes}; recall@1 on "
        f"{len(data.test)} images of other classes ({data.test_classes}): {before:.1%} before, "
        f"{after:.1%} after"
    )
    state = packaged_state(network.cpu())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: save_file(state, temporary))


def run(settings: QuickstartSettings) -> None:
    if not {"boxes", "mosaic"} <= set(settings.protocols):
        raise InputError(
            f"--protocols {','.join(settings.protocols)}: the two questions need boxes and mosaic"
        )
    with resumable(settings.output):
        if settings.checkpoint is None:
            path = settings.output / CHECKPOINT
            if not path.exists():
                train_network(settings, path)
            settings = replace(settings, checkpoint=path, embedding_dim=None)
        localize(settings, two_questions)


Settings = QuickstartSettings
