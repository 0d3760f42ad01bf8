"""The settings of a command: a dataclass whose fields are flags and JSON keys.

The field ``num_tuples`` is the flag ``--num-tuples`` and the key ``"num_tuples"``. Its help text,
its parser and whether it changes the results stand beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from captum_embed.errors import (
    BankFileError,
    BankMismatchError,
    InputError,
    LayerError,
    MissingExtraError,
    ProcessError,
)

SettingsT = TypeVar("SettingsT")
JsonValue = str | int | float | bool | None | list[str]
INTERRUPTED = 130
# What a user can put right; anything else is a bug, and keeps its traceback.
EXPECTED = (
    InputError,
    LayerError,
    BankFileError,
    BankMismatchError,
    MissingExtraError,
    ProcessError,
    OSError,
)


def setting(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    parse: Callable[[str], Any] = str,
    choices: Iterable[str] | None = None,
    changes_results: bool = True,
) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        help (str): what it does, with its unit; the default is added.
        default (Any, optional): without one the flag is required.
        parse (Callable): text to value; raises ValueError for text that makes none.
        choices (Iterable of str, optional): the values allowed.
        changes_results (bool): whether a run with another value is another experiment.
    """
    metadata = {
        "help": help,
        "parse": parse,
        "choices": tuple(choices) if choices else None,
        "changes_results": changes_results,
    }
    return dataclasses.field(default=default, metadata=metadata)


def add_arguments(parser: argparse.ArgumentParser, settings: type[Any]) -> None:
    """One flag per field of a settings class."""
    for field in dataclasses.fields(settings):
        required = field.default is dataclasses.MISSING
        text = field.metadata["help"]
        options: dict[str, Any] = {"help": text, "required": required}
        if not required:
            options["default"] = field.default
            if field.default not in (None, (), "", False):
                shown = field.default
                options["help"] += f" (default: {shown})".replace("%", "%%")
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["type"] = _argparse_type(field.metadata["parse"])
            options["choices"] = field.metadata["choices"]
        parser.add_argument("--" + field.name.replace("_", "-"), **options)


def _argparse_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            if parse in (int, float):
                raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def from_arguments(settings: type[SettingsT], arguments: argparse.Namespace) -> SettingsT:
    """The settings of a parsed command line."""
    names = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    return settings(**{name: getattr(arguments, name) for name in names})


def execute(run: Callable[[Any], Any], settings: type[Any], parsed: argparse.Namespace) -> int:
    """Run a command with the settings of a parsed command line.

    Args:
        run (Callable): takes the settings.
        settings (type): their dataclass.
        parsed (argparse.Namespace): the command line.

    Returns:
        int: the exit status.
    """
    try:
        run(from_arguments(settings, parsed))
    except KeyboardInterrupt:
        return INTERRUPTED
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def as_json(settings: Any, *, only_changing_results: bool = False) -> dict[str, JsonValue]:
    """Settings as a JSON object, under the fields' names."""
    return {
        field.name: _plain(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.metadata["changes_results"] or not only_changing_results
    }


def _plain(value: Any) -> JsonValue:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (ClassNumbers, ClassNames)):
        return str(value)
    if isinstance(value, tuple):
        return [str(item) for item in value]
    plain: JsonValue = value
    return plain


def as_command(command: str, settings: Any) -> str:
    """The command line that gives these settings to a module; defaults are left out.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Example:
        ...     data: Path = setting("where", parse=Path)
        ...     seed: int = setting("of all", default=0, parse=int)
        ...     progress: bool = setting("bar", default=True)
        >>> as_command("benchmarks train", Example(Path("my data"), progress=False))
        "python -m benchmarks train --data 'my data' --no-progress"
    """
    words = ["python", "-m", *command.split()]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        flag = field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        else:
            plain = _plain(value)
            words += [f"--{flag}", ",".join(plain) if isinstance(plain, list) else str(plain)]
    return shlex.join(words)


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What differs between two JSON objects of settings, a line each."""
    return [
        f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ]


def is_whole(text: str) -> bool:
    """Whether a text is a whole number of at most 18 digits; Python reads those of any script.

    Example:
        >>> is_whole("12"), is_whole("\u0661"), is_whole("1" * 5000)
        (True, False, False)
    """
    return re.fullmatch("[0-9]{1,18}", text) is not None


class ClassNumbers(tuple[int, ...]):
    """A data set's own class numbers, written ``1-10,12``.

    Example:
        >>> tuple(ClassNumbers.parse("3,1-2"))
        (1, 2, 3)
        >>> str(ClassNumbers.parse("3,1-2,7"))
        '1-3,7'
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> ClassNumbers:
        """From text such as ``1-10,12``.

        Raises:
            InputError: not of this form, a range that runs backwards, or a class named twice.
        """
        numbers: list[int] = []
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            if not is_whole(first) or (dash and not is_whole(last)):
                raise InputError(
                    f"{text!r} is not a list of class numbers; expected for example 1-10 or 1-10,12"
                )
            low, high = int(first), int(last) if dash else int(first)
            if high < low or high - low > 100_000:
                raise InputError(f"{text!r}: the range {part.strip()} is empty or too long")
            numbers.extend(range(low, high + 1))
        if len(set(numbers)) < len(numbers):
            raise InputError(f"{text!r} names a class twice")
        return cls(sorted(numbers))

    def __str__(self) -> str:
        runs: list[list[int]] = []
        for number in self:
            if runs and number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


class ClassNames(tuple[str, ...]):
    """Names of classes, which a data set turns into its numbers; written ``robin,sparrow``."""

    __slots__ = ()

    def __str__(self) -> str:
        return ",".join(self)


Classes = ClassNumbers | ClassNames


def class_choice(text: str) -> Classes:
    """Numbers of classes where a text holds nothing else, and names otherwise.

    Raises:
        InputError: see `ClassNumbers.parse`; or a name given twice.

    Example:
        >>> class_choice("1-3,7"), class_choice("robin, house sparrow")
        ((1, 2, 3, 7), ('robin', 'house sparrow'))
    """
    if re.fullmatch("[0-9, -]*", text):
        return ClassNumbers.parse(text)
    return ClassNames(names(text))


def positive_int(text: str) -> int:
    """An integer of 1 or more.

    Raises:
        InputError: anything else.
    """
    if not is_whole(text) or int(text) < 1:
        raise InputError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def whole_number(text: str) -> int:
    """0, 1, 2, ...

    Raises:
        InputError: anything else.
    """
    if not is_whole(text):
        raise InputError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def finite_number(text: str) -> float:
    """A number as JSON can hold it.

    Raises:
        InputError: anything else.

    Example:
        >>> finite_number("1e-4")
        0.0001
    """
    plain = re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*(e[+-]?[0-9]+)?", text, flags=re.IGNORECASE)
    try:
        number = float(text) if plain and len(text) < 100 else math.inf
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{text[:100]!r} is not a finite number")
    return number


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas.

    Raises:
        InputError: none given, or one given twice.
    """
    listed = tuple(part.strip() for part in text.split(",") if part.strip())
    if not listed:
        raise InputError("no name is given")
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise InputError(f"named twice: {', '.join(twice)}")
    return listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonSettings:
    """What every command that computes is told."""

    seed: int = setting("of everything drawn", default=0, parse=whole_number)
    progress: bool = setting("show progress bars", default=True, changes_results=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """Where the network runs."""

    device: str = setting("cpu, cuda, or auto", default="auto", changes_results=False)
