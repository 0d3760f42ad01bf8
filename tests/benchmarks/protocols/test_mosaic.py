"""Protocol C, with networks whose right answer is known."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, LayerGradCam, LayerGradientXActivation
from PIL import Image
from torch import Tensor, nn

from benchmarks.datasets.records import ImageRecord, load_rgb
from benchmarks.methods import heatmap
from benchmarks.metrics.mosaic import CELLS
from benchmarks.protocols.mosaic import MosaicProtocol
from benchmarks.protocols.protocol import Frame, Source
from benchmarks.protocols.registry import PROTOCOLS
from captum_embed.errors import InputError

MOSAIC = PROTOCOLS["mosaic"]
COLOURS = [(230, 60, 60), (60, 220, 70), (60, 60, 240), (220, 220, 60), (210, 70, 220)]
SIDE = 224


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Three noisy images of each of five colours; a colour is a class."""
    tmp_path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for label, colour in enumerate(COLOURS):
        for index in range(3):
            path = tmp_path / f"{label}-{index}.png"
            pixels = np.array(colour) + rng.integers(-15, 16, (260, 300, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            made.append(ImageRecord(path.name, path, label, f"colour {label}", (0, 0, 300, 260)))
    return made


def mean_colour(images: Tensor) -> Tensor:
    return images.mean((2, 3))


def items_of(records: list[ImageRecord], **options: int) -> list[Any]:
    return list(MOSAIC.items(Source(records, embed=mean_colour, **options)))


@pytest.fixture(scope="module")
def frame(records: list[ImageRecord]) -> Frame:
    frame = MOSAIC.frame(items_of(records, num_mosaics=1)[0])
    assert frame is not None
    return frame


def explained(
    frame: Frame, explain: Callable[[int, Tensor, Tensor | None], Tensor]
) -> dict[str, Any]:
    """Measures of the maps (1, 1, h, w) of a cell, its reference and the foils."""
    maps = []
    for number, question in enumerate(frame.questions):
        assert question.references is not None
        signed_map = explain(number % CELLS, question.references, question.foils)
        maps.append(heatmap(signed_map, frame.size))
    return MOSAIC.measure(maps, frame)


def cell_of(pixels: Tensor, cell: int) -> Tensor:
    """One cell of (N, C, H, W)."""
    half = pixels.shape[-1] // 2
    row, column = divmod(cell, 2)
    return pixels[..., row * half : (row + 1) * half, column * half : (column + 1) * half]


def test_a_mosaic_is_four_crops_of_four_classes(records: list[ImageRecord]) -> None:
    (item,) = items_of(records, num_mosaics=1)
    assert len({record.label for record in item.cells}) == CELLS
    for cell, reference, embedding in zip(
        item.cells, item.references, item.embeddings, strict=True
    ):
        assert cell.label == reference.label
        assert cell.key != reference.key
        own = mean_colour(PROTOCOLS["attention"].show(load_rgb(reference))[None])
        np.testing.assert_allclose(embedding, F.normalize(own)[0], atol=1e-6)
    frame = MOSAIC.frame(item)
    assert frame is not None
    assert frame.size == (2 * SIDE, 2 * SIDE)
    for number, record in enumerate(item.cells):
        crop = PROTOCOLS["attention"].show(load_rgb(record))
        assert torch.equal(cell_of(frame.image, number), crop)


def test_questions_are_each_reference_alone_and_then_against_the_others(
    records: list[ImageRecord],
) -> None:
    (item,) = items_of(records, num_mosaics=1)
    frame = MOSAIC.frame(item)
    assert frame is not None
    references = torch.from_numpy(item.embeddings)
    for cell in range(CELLS):
        plain, against = frame.questions[cell], frame.questions[CELLS + cell]
        for question in (plain, against):
            assert question.references is not None
            assert torch.equal(question.references, references[[cell]])
        others = [other for other in range(CELLS) if other != cell]
        assert plain.foils is None
        assert against.foils is not None
        assert torch.equal(against.foils, references[others])


def test_items_come_from_the_seed_and_fewer_are_the_first_of_more(
    records: list[ImageRecord],
) -> None:
    def names(**options: int) -> list[tuple[str, ...]]:
        items = items_of(records, **options)
        return [(i.key, *(r.key for r in (*i.cells, *i.references))) for i in items]

    five = names(num_mosaics=5)
    assert names(num_mosaics=5) == five
    assert names(num_mosaics=2) == five[:2]
    assert len({name[0] for name in five}) == 5
    assert names(num_mosaics=5, seed=1) != five


def test_an_item_is_light_and_can_be_sent_to_another_process(records: list[ImageRecord]) -> None:
    (item,) = items_of(records, num_mosaics=1)
    sent = pickle.dumps(item)
    assert len(sent) < 10_000
    received = pickle.loads(sent)
    assert (received.key, received.label) == (item.key, item.label)
    frame, same = MOSAIC.frame(item), MOSAIC.frame(received)
    assert frame is not None
    assert same is not None
    assert torch.equal(frame.image, same.image)


def test_only_mosaics_that_the_network_tells_apart_are_kept(records: list[ImageRecord]) -> None:
    def confused(images: Tensor) -> Tensor:
        # Noise of a few pixels, which says nothing of the class: right by chance.
        return (images[:, 0, 100:104, 100:102] - images[:, 0, 110:114, 100:102]).flatten(1)

    items: list[Any] = list(MOSAIC.items(Source(records, embed=confused, num_mosaics=3)))
    tried = MOSAIC.num_tried(items)
    assert tried is not None
    assert tried > 3
    for item in items:
        shown = torch.stack([PROTOCOLS["attention"].show(load_rgb(r)) for r in item.cells])
        similarities = torch.from_numpy(item.embeddings) @ F.normalize(confused(shown)).T
        assert similarities.argmax(1).tolist() == list(range(CELLS))


def test_a_network_that_tells_nothing_apart_is_refused(
    records: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.protocols.mosaic.MOST_TRIES", 5)
    source = Source(records, embed=lambda images: torch.ones(len(images), 3), num_mosaics=2)
    with pytest.raises(InputError, match="none of 10 mosaics"):
        MOSAIC.items(source)


def test_too_few_classes_and_broken_embeddings_are_refused(records: list[ImageRecord]) -> None:
    with pytest.raises(InputError, match="4 test classes of two or more images, and there are 3"):
        items_of(records[:10])
    broken = Source(records, embed=lambda images: torch.full((len(images), 3), torch.nan))
    with pytest.raises(InputError, match=r"0-0\.png.*NaN"):
        MOSAIC.items(broken)
    with pytest.raises(InputError, match="give Source an embed"):
        MOSAIC.items(Source(records))


def test_a_uniform_map_scores_exactly_a_quarter(frame: Frame) -> None:
    floor = MOSAIC.floors(frame)["uniform_heatmap"]
    assert floor.pop("empty") is False
    assert floor == {figure.key: 0.25 for figure in MosaicProtocol.figures}


def test_an_edge_filter_scores_a_quarter(frame: Frame) -> None:
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).expand(1, 3, 3, 3)
    edges = F.conv2d(frame.image[None], kernel, padding=1).abs()
    measures = explained(frame, lambda *_: edges)
    assert [measures[figure.key] for figure in MOSAIC.figures] == pytest.approx([0.25] * 4)


def test_random_maps_score_about_a_quarter(frame: Frame) -> None:
    generator = torch.Generator().manual_seed(0)
    measures = explained(frame, lambda *_: torch.rand(1, 1, 28, 28, generator=generator))
    assert measures["mosaic_mass"] == pytest.approx(0.25, abs=0.02)
    assert measures["mosaic_foil_mass"] == pytest.approx(0.25, abs=0.02)


class ReadsOneCell(nn.Module):
    """The mean colour of one cell; the rest of the mosaic changes nothing."""

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(cell_of(images, self.cell).mean((2, 3)))


def similarity(
    encoder: Callable[[Tensor], Tensor], references: Tensor, foils: Tensor | None
) -> Callable[[Tensor], Tensor]:
    against = 0 if foils is None else foils.mean(0)
    return lambda images: (encoder(images) * (references.mean(0) - against)).sum(1)


def test_a_network_that_reads_one_cell_is_found_out(frame: Frame) -> None:

    def explain(reads: int, references: Tensor, foils: Tensor | None) -> Tensor:
        forward = similarity(ReadsOneCell(reads), references, foils)
        image = frame.image[None].clone().requires_grad_()
        return InputXGradient(forward).attribute(image).abs().sum(1, keepdim=True).detach()

    right = explained(frame, explain)
    assert [right[figure.key] for figure in MOSAIC.figures] == [1, 1, 1, 1]
    wrong = explained(frame, lambda cell, *given: explain((cell + 1) % CELLS, *given))
    assert [wrong[figure.key] for figure in MOSAIC.figures] == [0, 0, 0, 0]
    # Whatever it is asked for, it reads the first cell: right once in four.
    stubborn = explained(frame, lambda _, *given: explain(0, *given))
    assert [stubborn[figure.key] for figure in MOSAIC.figures] == [0.25] * 4


class Disconnected(nn.Module):
    """The body runs on each cell for itself, the outputs are stitched, the head sees one cell."""

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell
        torch.manual_seed(0)
        # Of the mosaic's own resolution: enlarging a map would blur it over the cells' edges.
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.stitched = nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        cells = [self.body(cell_of(images, cell)) for cell in range(CELLS)]
        rows = torch.cat(cells[:2], 3), torch.cat(cells[2:], 3)
        whole = self.stitched(torch.cat(rows, 2))
        return F.normalize(self.head(cell_of(whole, self.cell).mean((2, 3))))


def test_in_a_disconnected_mosaic_pooled_weights_leak_and_others_do_not(
    frame: Frame,
) -> None:

    def by(method: type) -> dict[str, Any]:
        def explain(cell: int, references: Tensor, foils: Tensor | None) -> Tensor:
            network = Disconnected(cell).eval()
            forward = similarity(network, references, foils)
            attributions = method(forward, network.stitched).attribute(frame.image[None])
            # Signs are not the question here, and a map without positive parts would be empty.
            return attributions.sum(1, keepdim=True).abs().detach()

        return explained(frame, explain)

    alone = by(LayerGradientXActivation)
    assert [alone[figure.key] for figure in MOSAIC.figures] == [1, 1, 1, 1]
    leaking = by(LayerGradCam)
    assert leaking["mosaic_mass"] < 0.6
    assert leaking["mosaic_foil_mass"] < 0.6


def test_empty_maps_score_nothing_and_say_so(frame: Frame) -> None:
    measures = MOSAIC.measure([np.zeros(frame.size)] * 8, frame)
    assert measures == {"empty": True, **{figure.key: 0 for figure in MOSAIC.figures}}
    one = [np.zeros(frame.size), *[np.ones(frame.size)] * 7]
    assert MOSAIC.measure(one, frame)["empty"] is True
    assert MOSAIC.measure(one, frame)["mosaic_mass"] == pytest.approx(3 / 16)
