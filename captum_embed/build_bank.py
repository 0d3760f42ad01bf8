r"""A weight bank built by several processes, on one machine or many.

Start it with ``torchrun``; options are those of ``captum-embed bank build``::

    torchrun --nproc-per-node 8 -m captum_embed.build_bank birds/ --network torchvision:resnet50 \
        --output birds.bank

The processes share the images; embeddings are gathered; each process writes its shards, and the
first one the manifest, once all shards are there. The bank is the one that a single process
builds. Where a process fails, all of them end with an error; started again, in whatever number,
they go on where they were. On several machines, the folder of ``--output`` must be one that all
of them see. Each process uses one GPU, where there are as many.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from captum_embed.command_line.main import main as run_command
from captum_embed.weight_bank.processes import joined, launched


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``captum-embed bank build`` in this process, one of those that ``torchrun`` started.

    Args:
        arguments: Options; None: those on the command line.

    Returns:
        The exit code, as of ``captum-embed``.
    """
    command = ["bank", "build", *(sys.argv[1:] if arguments is None else arguments)]
    rank, count = launched()
    if count > 1:
        signal.signal(signal.SIGTERM, _end)
    # All of them know what the bank holds; one tells it.
    told = contextlib.nullcontext() if rank == 0 else contextlib.redirect_stdout(io.StringIO())
    with joined(), told:
        return run_command(command)


def _end(number: int, frame: Any) -> NoReturn:
    """Where another process failed, ``torchrun`` ends this one: what there is is written first."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
