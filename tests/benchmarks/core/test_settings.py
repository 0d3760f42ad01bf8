import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.core.settings import (
    ClassNumbers,
    add_arguments,
    as_json,
    class_choice,
    differences,
    finite_number,
    from_arguments,
    names,
    positive_int,
    setting,
    whole_number,
)
from captum_embed.errors import InputError


@dataclass(frozen=True)
class Example:
    data: Path = setting("where", parse=Path)
    train_classes: ClassNumbers | None = setting("which", default=None, parse=ClassNumbers.parse)
    num_tuples: int = setting("how many", default=50, parse=positive_int)
    methods: tuple[str, ...] = setting("which", default=("fast",), parse=names)
    progress: bool = setting("bar", default=True, changes_results=False)


def parse(*words: str) -> Example:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, Example)
    return from_arguments(Example, parser.parse_args(words))


def test_a_setting_has_one_name_from_the_command_line_to_the_json() -> None:
    parsed = parse("--data", "a/b", "--train-classes", "2,4-6", "--num-tuples", "7",
                   "--methods", "x,y", "--no-progress")  # fmt: skip
    assert as_json(parsed) == {
        "data": "a/b",
        "train_classes": "2,4-6",
        "num_tuples": 7,
        "methods": ["x", "y"],
        "progress": False,
    }
    assert "progress" not in as_json(parsed, only_changing_results=True)


def test_a_setting_without_default_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parse()
    assert parse("--data", "x") == Example(Path("x"))


def test_what_cannot_be_parsed_is_refused_with_what_was_expected() -> None:
    with pytest.raises(argparse.ArgumentError, match="'0' is not a whole number of 1 or more"):
        parse("--data", "x", "--num-tuples", "0")
    with pytest.raises(argparse.ArgumentError, match="expected for example 1-10"):
        parse("--data", "x", "--train-classes", "one")


def test_differences_name_the_setting_and_both_values() -> None:
    assert differences({"seed": 1, "same": 2}, {"seed": 0, "same": 2}) == ["seed: 0 there, 1 here"]


@given(st.sets(st.integers(0, 60), min_size=1))
def test_class_numbers_survive_being_written_and_read(chosen: set[int]) -> None:
    numbers = ClassNumbers(sorted(chosen))
    assert ClassNumbers.parse(str(numbers)) == numbers


@pytest.mark.parametrize(
    "text",
    ["", "1-", "-3", "a", "3-1", "1,1", "1-3,2", "1;2", "1-999999999", "\u0661", "1_0", "9" * 5000],
)
def test_text_that_is_no_list_of_classes_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        ClassNumbers.parse(text)


def test_a_name_twice_is_refused() -> None:
    assert names("a, b") == ("a", "b")
    with pytest.raises(InputError, match="named twice: a"):
        names("a,b,a")
    with pytest.raises(InputError, match="no name"):
        names(",")


@pytest.mark.parametrize("text", ["robin", "a-b,2", "house wren,1.jay", "\u0661"])
def test_other_text_names_classes(text: str) -> None:
    chosen = class_choice(text)
    assert not isinstance(chosen, ClassNumbers)
    assert class_choice(str(chosen)) == chosen


@pytest.mark.parametrize("text", ["", "1-", "3-1", "1,1", "robin,robin", ","])
def test_a_choice_of_classes_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        class_choice(text)


@pytest.mark.parametrize("text", ["-1", "1_0", "٣", "1.0", "", " 1", "1" * 30])
def test_seeds_are_plain_whole_numbers(text: str) -> None:
    with pytest.raises(InputError, match="not a whole number"):
        whole_number(text)
    assert whole_number("0") == 0


@pytest.mark.parametrize("text", ["inf", "nan", "1e400", "1_0", "٣", "", ".", "e5", "1" * 5000])
def test_numbers_are_plain_and_finite(text: str) -> None:
    with pytest.raises(InputError, match="not a finite number"):
        finite_number(text)
    assert [finite_number(t) for t in ("-1", ".5", "2E-3", "1e30")] == [-1, 0.5, 0.002, 1e30]
