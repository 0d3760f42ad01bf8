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
import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from captum_embed.command_line.main import main as run_command

# A process may wait for others that read from a slower disk. One that ends is seen at once.
_PATIENCE = timedelta(days=7)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``captum-embed bank build`` in this process, one of those that ``torchrun`` started.

    Args:
        arguments: Options; None: those on the command line.

    Returns:
        The exit code, as of ``captum-embed``.
    """
    command = ["bank", "build", *(sys.argv[1:] if arguments is None else arguments)]
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return run_command(command)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    with_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    if with_gpus:
        torch.cuda.set_device(local)
    signal.signal(signal.SIGTERM, _end)
    dist.init_process_group("nccl" if with_gpus else "gloo", timeout=_PATIENCE)
    try:
        # All of them know what the bank holds; one tells it.
        told = contextlib.nullcontext() if dist.get_rank() == 0 else _unheard()
        with told:
            return run_command(command)
    finally:
        dist.destroy_process_group()


def _end(number: int, frame: Any) -> NoReturn:
    """Where another process failed, ``torchrun`` ends this one: what there is is written first."""
    raise SystemExit(128 + number)


def _unheard() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


if __name__ == "__main__":
    sys.exit(main())
