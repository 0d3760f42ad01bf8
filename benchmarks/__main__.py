"""``python -m benchmarks COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import ablate, failures, localize, sanity, shortcut, train
from benchmarks.checkpoints import CheckpointError
from benchmarks.datasets.records import DatasetError
from benchmarks.report import command as report
from captum_embed.errors import (
    BankFileError,
    BankMismatchError,
    InputError,
    LayerError,
    MissingExtraError,
)

INTERRUPTED = 130
# What a user can put right; anything else is a bug, and keeps its traceback.
EXPECTED = (
    InputError,
    LayerError,
    CheckpointError,
    BankFileError,
    BankMismatchError,
    MissingExtraError,
    DatasetError,
    OSError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of attributions for embedding networks"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (localize, report, failures, ablate, sanity, shortcut, train):
        command.add_parser(commands)
    parsed = parser.parse_args(arguments)
    try:
        parsed.execute(parsed)
    except KeyboardInterrupt:
        return INTERRUPTED
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
