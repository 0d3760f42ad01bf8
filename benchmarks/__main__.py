"""``python -m benchmarks COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# A command is imported when it is chosen: --help must not wait for torch.
COMMANDS = {
    "quickstart": "train a small network, and ask of every map where the object is, and why",
    "localize": "compare attribution methods by how well they find the object",
    "faithfulness": "compare attribution methods by what the embedding rests on",
    "report": "make the tables, figures and page of a finished run again",
    "failures": "how the boxes of a finished run miss: a part, too big, the background",
    "ablate": "vary the settings of transfer, one at a time, on training classes alone",
    "reductions": "choose how attributions become maps, on training classes alone",
    "sanity": "compare maps to those of the network with random parameters",
    "speed": "what each part costs, as ratios measured side by side",
    "train": "train an embedding network with a triplet loss",
}
INSTALL = "pip install -e '.[benchmarks]' in a checkout brings what the benchmarks need"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks of attributions for embedding networks"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        subparser = commands.add_parser(name, help=purpose, description=purpose)
        if words[:1] == [name]:
            from benchmarks.core.settings import add_arguments

            try:
                command = import_module(f"benchmarks.commands.{name}")
            except ImportError as error:
                if (error.name or "").partition(".")[0] in ("benchmarks", "captum_embed"):
                    raise
                # Without a module's name it is our own message, which says what to install.
                instead = f"; {INSTALL}" if error.name else ""
                print(f"error: {error}{instead}", file=sys.stderr)
                return 1
            add_arguments(subparser, command.Settings)
    parsed = parser.parse_args(words)
    from benchmarks.core.settings import execute

    return execute(command.run, command.Settings, parsed)


if __name__ == "__main__":
    sys.exit(main())
