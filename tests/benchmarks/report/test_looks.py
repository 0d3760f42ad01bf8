import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.report.looks import COLOURS, GREY, colours, looks_of, looks_of_run, ranked


def methods(count: int) -> list[dict[str, Any]]:
    families = ("ours", "control", "captum: layer", "captum: input", "rival")
    return [
        {"name": f"m{i}", "title": f"Method {i}", "family": families[i % 5]} for i in range(count)
    ]


@given(st.permutations([f"m{i}" for i in range(12)]))
@settings(max_examples=20, deadline=None)
def test_colours_go_by_the_name_and_not_by_the_order(names: list[str]) -> None:
    chosen = colours(names)
    assert chosen == colours(sorted(names))
    assert set(chosen.values()) == set(COLOURS)


def test_a_colour_is_kept_when_another_method_joins_or_leaves() -> None:
    before = colours(["ours_localize", "saliency", "eigen_cam"])
    after = colours(["eigen_cam", "lime", "ours_localize"])
    assert before["eigen_cam"] == after["eigen_cam"]
    assert before["ours_localize"] == after["ours_localize"] == COLOURS[0]


def test_of_many_methods_twelve_are_coloured_and_the_rest_grey() -> None:
    looks = looks_of(methods(30), "m29")
    coloured = [look for look in looks.values() if look.colour != GREY]
    assert len(coloured) == len({look.colour for look in coloured}) == 12
    assert looks["m29"].colour != GREY, "the main method"
    assert {look.family for look in coloured} == {m["family"] for m in methods(5)}
    assert {look.named for look in coloured} == {True}
    assert sum(look.named for look in looks.values()) == 12


def test_families_differ_in_dash_and_shape() -> None:
    looks = looks_of([*methods(5), {"name": "x", "title": "X", "family": "invented"},
                      {"name": "f", "title": "F", "family": "floor"}], None).values()  # fmt: skip
    assert len({tuple(look.dash) for look in looks}) == 7
    assert len({look.shape for look in looks}) == 7


def test_methods_on_fewer_images_say_so_and_are_coloured_last() -> None:
    images = {f"m{i}": 5 if i < 10 else 100 for i in range(30)}
    looks = looks_of(methods(30), None, images)
    assert looks["m3"].label == "Method 3 (n = 5)"
    assert looks["m12"].label == "Method 12"
    assert {name for name, look in looks.items() if look.colour != GREY} == {
        f"m{i}" for i in range(10, 22)
    }


def test_labels_are_told_apart_even_where_titles_are_not() -> None:
    same = [{"name": name, "title": "Same", "family": "rival"} for name in "abc"]
    assert len({look.label for look in looks_of(same, None).values()}) == 3


def test_where_lower_is_better_the_lowest_is_first(results: dict[str, Any]) -> None:
    first = ranked(results)
    worse = copy.deepcopy(results)
    worse["figures"] = [{**figure, "better": "lower"} for figure in results["figures"]]
    assert first[0] == "ours_recommended"
    # The uniform heatmap has no boxes, and is the last in either case.
    assert ranked(worse)[-1] == first[-1] == "uniform_heatmap"
    values = {name: results["summary"][name]["boxes"]["figures"]["accuracy_at_0.2"]["value"]
              for name in first[:-1]}  # fmt: skip
    assert [values[name] for name in ranked(worse)[:-1]] == sorted(values.values())


def test_all_charts_of_a_run_share_the_looks(results: dict[str, Any]) -> None:
    again = copy.deepcopy(results)
    again["methods"].reverse()
    first, second = looks_of_run(results), looks_of_run(again)
    assert first == second
