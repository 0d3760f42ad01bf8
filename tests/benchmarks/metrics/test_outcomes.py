import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.metrics.boxes import Box, iou
from benchmarks.metrics.outcomes import OUTCOMES, object_sizes, outcomes, size_names
from captum_embed.errors import InputError

OBJECT = (20, 20, 60, 60)
SIDE = 12


def outcome(predicted: Box, truth: Box = OBJECT) -> str:
    return OUTCOMES[outcomes([predicted], [truth])[0]]


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ((20, 20, 60, 60), "correct"),
        ((22, 18, 62, 58), "correct"),
        ((20, 20, 60, 40), "correct"),  # half of it: IoU is 0.5
        ((20, 20, 60, 39), "part"),
        ((50, 25, 58, 33), "part"),  # a spot on the head; IoU is 0.04
        ((19, 20, 29, 30), "part"),  # 90% of the spot is on the object
        ((18, 20, 28, 30), "aside"),  # and here 80%
        ((0, 0, 100, 80), "too big"),
        ((24, 20, 100, 70), "too big"),  # 90% of the object
        ((28, 20, 100, 70), "aside"),  # 80% of the object
        ((50, 50, 90, 90), "background"),  # 100 of 1600 pixels
        ((50, 50, 80, 80), "aside"),  # 100 of 900
        ((70, 70, 80, 80), "background"),
        ((60, 20, 80, 40), "background"),  # they touch, no more
        ((0, 0, 0, 0), "empty"),
    ],
)
def test_hand_made_boxes(predicted: Box, expected: str) -> None:
    assert outcome(predicted) == expected


def test_a_large_box_around_a_tiny_object_is_too_big_and_not_background() -> None:
    assert outcome((0, 0, 100, 100), (40, 40, 45, 45)) == "too big"


def test_a_recorded_overlap_decides_on_what_is_correct() -> None:
    kinds = outcomes([OBJECT, OBJECT, (25, 25, 30, 30)], [OBJECT] * 3, [0.5, 0.4999, 0.02])
    assert [OUTCOMES[index] for index in kinds] == ["correct", "part", "part"]


def boxes(smallest: int) -> st.SearchStrategy[Box]:
    def box(corner: tuple[int, int], sides: tuple[int, int]) -> Box:
        x0, y0 = corner
        return x0, y0, min(SIDE, x0 + sides[0]), min(SIDE, y0 + sides[1])

    corner = st.tuples(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1))
    side = st.integers(smallest, SIDE)
    return st.builds(box, corner, st.tuples(side, side))


def pixels(box: Box) -> set[tuple[int, int]]:
    x0, y0, x1, y1 = (int(side) for side in box)
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


def definitions(predicted: Box, truth: Box) -> dict[str, bool]:
    """Each outcome by its own words, on pixels and in whole numbers."""
    ours, theirs = pixels(predicted), pixels(truth)
    shared, united = len(ours & theirs), len(ours | theirs)
    correct = 2 * shared >= united
    wrong = bool(ours) and not correct
    inside = 10 * shared >= 9 * len(ours)
    whole = 10 * shared >= 9 * len(theirs)
    hardly = 10 * shared < len(ours)
    return {
        "correct": correct,
        "part": wrong and inside,
        "too big": wrong and whole,
        "aside": wrong and not inside and not whole and not hardly,
        "background": wrong and hardly and not whole,
        "empty": not ours,
    }


@given(st.lists(st.tuples(boxes(0), boxes(1)), min_size=1, max_size=20))
def test_each_image_has_the_one_outcome_that_counting_pixels_gives(
    pairs: list[tuple[Box, Box]],
) -> None:
    kinds = outcomes(*zip(*pairs, strict=True))
    for index, (predicted, truth) in zip(kinds, pairs, strict=True):
        holding = [name for name, holds in definitions(predicted, truth).items() if holds]
        assert holding == [OUTCOMES[index]]


@given(
    st.lists(
        st.tuples(*[st.floats(0, 100, allow_subnormal=False)] * 4).map(
            lambda c: (*np.minimum(c[:2], c[2:]), *np.maximum(c[:2], c[2:]))
        ),
        min_size=1,
        max_size=20,
    )
)
def test_outcomes_of_any_boxes_agree_with_their_overlap(predicted: list[Box]) -> None:
    truth = np.array([OBJECT] * len(predicted))
    overlap = iou(np.array(predicted), truth)
    kinds = np.array(OUTCOMES)[outcomes(predicted, truth)]
    np.testing.assert_array_equal(kinds == "correct", overlap >= 0.5)
    assert (overlap[kinds == "background"] < 0.1).all()
    assert (overlap[kinds == "empty"] == 0).all()
    assert (overlap[np.isin(kinds, ("part", "too big", "aside"))] > 0).all()


@pytest.mark.parametrize(
    ("predicted", "truth", "overlap", "message"),
    [
        ([OBJECT], [OBJECT, OBJECT], None, "as many predicted boxes"),
        (OBJECT, OBJECT, None, "as many predicted boxes"),
        ([OBJECT], [OBJECT], [0.5, 0.5], "as many predicted boxes"),
        ([OBJECT], [(5, 5, 5, 9)], None, "object 0 has a box without area"),
        ([(5, 5, 1, 9)], [OBJECT], None, "x0 <= x1"),
        ([(np.nan, 5, 9, 9)], [OBJECT], None, "finite"),
    ],
)
def test_bad_boxes_are_refused(predicted, truth, overlap, message) -> None:
    with pytest.raises(InputError, match=message):
        outcomes(predicted, truth, overlap)


@pytest.mark.parametrize(
    ("width", "group"), [(1, 0), (9, 0), (10, 1), (24, 1), (25, 2), (49, 2), (50, 3), (100, 3)]
)
def test_objects_are_grouped_by_their_share_of_the_image(width: int, group: int) -> None:
    assert object_sizes([(0, 0, width, 10)], [(100, 10)]).tolist() == [group]
    assert len(size_names()) == 4


@pytest.mark.parametrize(
    ("truth", "sizes", "message"),
    [
        ([OBJECT], [(100, 100)] * 2, "expected boxes"),
        ([OBJECT], [(0, 100)], "above 0"),
        ([OBJECT], [(30, 30)], "larger than its image"),
    ],
)
def test_bad_sizes_are_refused(truth, sizes, message) -> None:
    with pytest.raises(InputError, match=message):
        object_sizes(truth, sizes)
