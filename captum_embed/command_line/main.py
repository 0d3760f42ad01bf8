"""The entry point of the command line: from arguments to an exit code."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, TextIO

from captum_embed.command_line.options import PROGRAM, check, parser
from captum_embed.errors import (
    BankFileError,
    BankMismatchError,
    InputError,
    LayerError,
    MissingExtraError,
    ProcessError,
)

INTERRUPTED = 130
# What a user can put right; anything else is an error in here, and keeps its traceback.
EXPECTED = (
    BankFileError,
    BankMismatchError,
    InputError,
    LayerError,
    MissingExtraError,
    OSError,
    ProcessError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: What follows the program's name. None: ``sys.argv``.

    Returns:
        The exit code: 0 done, 1 refused with a message on stderr, 2 wrong usage, 130
        interrupted.

    Example::

        >>> main(["--version"])
        captum-embed ...
        0
    """
    try:
        parsed = parser().parse_args(arguments)
        if parsed.version:
            from captum_embed import __version__

            print(PROGRAM, __version__)
            return 0
        if parsed.module is None:
            parsed.parser.print_help(sys.stderr)
            return 2
        check(parsed, parsed.parser.error)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            # A command is imported when it is chosen: --help must not wait for torch.
            command = import_module(f"captum_embed.command_line.{parsed.module}")
            facts, text = command.run(parsed)
    except KeyboardInterrupt:
        print("interrupted; the files that were written are whole", file=sys.stderr)
        return INTERRUPTED
    except EXPECTED as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(facts, indent=1, allow_nan=False) if parsed.json else text)
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> Any:
    # Other libraries' warnings are for people who write code.
    if "captum_embed" in filename:
        print(f"warning: {message}", file=sys.stderr)
