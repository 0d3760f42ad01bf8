"""What happens between a command line and the exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.core.settings import from_arguments
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
    BankFileError,
    BankMismatchError,
    MissingExtraError,
    OSError,
)


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
