"""Protocol E, with maps and embeddings whose answer is known."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.datasets.marks import SIDE, mark, place_beside
from benchmarks.datasets.preprocess import to_tensor
from benchmarks.datasets.records import ImageRecord
from benchmarks.metrics.bootstrap import draw
from benchmarks.protocols.mark import MarkProtocol, followed, foreign_mark, marks_of
from benchmarks.protocols.protocol import Frame, Source
from benchmarks.protocols.registry import PROTOCOLS
from captum_embed.errors import InputError

MARK = PROTOCOLS["mark"]
CROP = 224


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Two images of each of three classes; the object fills a corner."""
    tmp_path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for label in (1, 2, 3):
        for index in range(2):
            path = tmp_path / f"{label}-{index}.png"
            pixels = rng.integers(0, 60, (256, 256, 3)).astype(np.uint8)
            pixels[:100, :100] = 80 * label
            Image.fromarray(pixels).save(path)
            made.append(ImageRecord(path.name, path, label, f"thing {label}", (0, 0, 100, 100)))
    return made


def frame_of(box: tuple[float, float, float, float]) -> Frame:
    image = torch.randn(3, CROP, CROP, generator=torch.Generator().manual_seed(0))
    return Frame(image, box, reference=image)


def figures(measured: list[dict[str, Any]]) -> dict[str, float]:
    numbers = {}
    for figure in MARK.figures:
        values = figure.values(measured)
        numbers[figure.key] = float(draw(values, figure.aggregate, num_resamples=1).estimate)
    return numbers


def test_a_map_of_what_each_network_rests_on_is_right_and_one_of_neither_is_not() -> None:
    frame = frame_of((0, 0, SIDE, SIDE))
    on_mark, beside = np.zeros((CROP, CROP)), np.zeros((CROP, CROP))
    on_mark[:SIDE, :SIDE] = 1
    beside[SIDE:, SIDE:] = 1
    # Absent, tied, random.
    right = figures([MARK.measure([beside, on_mark, beside], frame)] * 3)
    assert right["mark_difference"] == right["mark_auroc"] == right["mark_tied"] == 1
    assert right["mark_random"] == right["mark_absent"] == 0
    wrong = figures([MARK.measure([beside, beside, on_mark], frame)] * 3)
    assert (wrong["mark_difference"], wrong["mark_auroc"]) == (-1, 0)
    blind = figures([MARK.measure([on_mark] * 3, frame)] * 3)
    assert (blind["mark_difference"], blind["mark_auroc"]) == (0, 0.5)


def test_an_edge_filter_and_a_uniform_map_score_nothing() -> None:
    frames = [frame_of((x, 10, x + SIDE, 10 + SIDE)) for x in (0, 40, 120)]
    floors = [MARK.floors(frame) for frame in frames]
    for name in ("edge_filter", "uniform_heatmap", "centre_box"):
        numbers = figures([floor[name] for floor in floors])
        assert (numbers["mark_difference"], numbers["mark_auroc"]) == (0, 0.5)
    uniform = floors[0]["uniform_heatmap"]["mark_tied"]
    assert uniform == pytest.approx((SIDE / CROP) ** 2)


def test_empty_maps_are_counted() -> None:
    measures = MARK.measure([np.zeros((CROP, CROP))] * 3, frame_of((0, 0, SIDE, SIDE)))
    assert measures["empty"] is True
    assert measures["mark_tied"] == measures["mark_random"] == 0


def test_test_images_have_a_mark_that_their_reference_shares(records: list[ImageRecord]) -> None:
    source = Source(records, train_records=records)
    items: list[Any] = list(MARK.items(source))
    assert [item.record.key for item in items] == [record.key for record in records]
    again: list[Any] = list(MARK.items(source))
    assert [(i.number, i.other.key) for i in again] == [(i.number, i.other.key) for i in items]
    tied = marks_of(records)
    for item in items:
        assert item.number != tied[item.label]
        assert item.other.label == item.label
        assert item.other.key != item.record.key
        frame = MARK.frame(pickle.loads(pickle.dumps(item)))
        assert frame is not None
        assert frame.reference is not None
        x0, y0, x1, y1 = (int(side) for side in frame.box)
        drawn = to_tensor(Image.fromarray(mark(item.number)))
        assert torch.equal(frame.image[:, y0:y1, x0:x1], drawn)
        assert contains(frame.reference, drawn)
        assert frame.foils is not None
        for (foil, number), shown in zip(item.foils, frame.foils, strict=True):
            assert foil.label != item.label
            assert number != item.number
            assert contains(shown, to_tensor(Image.fromarray(mark(number))))
    limited: list[Any] = list(MARK.items(Source(records, limit=2, train_records=records)))
    numbers = {item.key: item.number for item in items}
    assert all(numbers[item.key] == item.number for item in limited)


def contains(image: Tensor, drawn: Tensor) -> bool:
    size = drawn.shape[1]
    windows = image.unfold(1, size, 8).unfold(2, size, 8)
    return bool((windows == drawn[:, None, None]).all(-1).all(-1).all(0).any())


def test_photographs_are_the_same_but_for_marks_and_objects(records: list[ImageRecord]) -> None:
    assert isinstance(MARK, MarkProtocol)
    plain, marked, other = (MARK.marked(records[0], n, 0, "training") for n in (None, 0, 1))
    hidden = MARK.marked(records[0], None, 0, "training", without_object=True)
    assert plain is not None
    assert marked is not None
    assert other is not None
    assert hidden is not None
    assert plain[1] == marked[1] == other[1]
    x0, y0, x1, y1 = (int(side) for side in plain[1])
    beside = torch.ones(CROP, CROP, dtype=torch.bool)
    beside[y0:y1, x0:x1] = False
    assert torch.equal(plain[0][:, beside], marked[0][:, beside])
    assert not torch.equal(marked[0], other[0])
    # The object is a corner of one colour; the mark hides none of it.
    assert beside[:80, :80].all()
    assert plain[0][:, :80, :80].std((1, 2)).max() < 1e-4 < hidden[0][:, :80, :80].std((1, 2)).min()


def test_retrieval_is_counted_where_mark_and_class_disagree() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, marks = [0, 1] * 8, [0, 0, 1, 1] * 4
    noise = 0.01 * torch.randn(16, 2, generator=generator)
    by_mark = torch.eye(2)[torch.tensor(marks)] + noise
    by_class = torch.eye(2)[torch.tensor(labels)] + noise
    assert followed(by_mark, labels, marks) == {"mark": 1, "class": 0}
    assert followed(by_class, labels, marks) == {"mark": 0, "class": 1}
    with pytest.raises(InputError, match="no choice"):
        followed(by_mark[:3], [1, 1, 1], [2, 2, 2])


def test_marks_differ_and_lie_beside_the_object() -> None:
    drawn = {mark(number).tobytes() for number in range(20)}
    assert len(drawn) == 20
    taken = np.ones((CROP, CROP), dtype=bool)
    taken[-SIDE:, -SIDE:] = False
    for seed in range(3):
        box = place_beside(taken, np.random.default_rng(seed))
        assert box == (CROP - SIDE, CROP - SIDE, CROP, CROP)
    assert place_beside(taken[:20, :30], np.random.default_rng(0)) == (0, 0, 30, 20)


def test_what_cannot_be_asked_is_refused(records: list[ImageRecord]) -> None:
    with pytest.raises(InputError, match="two classes or more, and there are 1"):
        marks_of(records[:2])
    with pytest.raises(InputError, match="only image of its class"):
        MARK.items(Source([records[0], *records[2:]], train_records=records))
    with pytest.raises(InputError, match="two test classes"):
        MARK.items(Source(records[:2], train_records=records))
    assert foreign_mark(records[0], {1: 0, 2: 1}, 5) == 1
