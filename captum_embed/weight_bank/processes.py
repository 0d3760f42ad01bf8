"""The processes that do one job together, by the collectives of ``torch.distributed``.

Only tensors and text are exchanged: objects would be pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from captum_embed.errors import ProcessError

# A process may wait for others that read from a slower disk. One that ends is seen at once.
_PATIENCE = timedelta(days=7)


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that ``torchrun`` started, once all of them are here; or this one alone.

    Each uses one GPU, where there are as many.

    Example::

        >>> with joined() as processes:
        ...     processes.count
        1
    """
    if launched()[1] == 1:
        yield Processes()
        return
    with_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    if with_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if with_gpus else "gloo", timeout=_PATIENCE)
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


def launched() -> tuple[int, int]:
    """Number of this process, and of how many, as ``torchrun`` tells it; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Processes:
    """The processes of a group, or this one alone where ``torch.distributed`` is not in use.

    Args:
        group: Process group; None: all processes.

    Attributes:
        rank: Number of this process in the group.
        count: How many there are.

    Example::

        >>> processes = Processes()
        >>> processes.count, processes.share(10)
        (1, range(0, 10))
    """

    def __init__(self, group: Any = None) -> None:
        active = dist.is_available() and dist.is_initialized()
        self._group = group
        self.rank = dist.get_rank(group) if active else 0
        self.count = dist.get_world_size(group) if active else 1
        self._device = torch.device("cpu")
        if self.count > 1 and dist.get_backend(group) == "nccl":
            self._device = torch.device("cuda", torch.cuda.current_device())

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's: as many for each, in the order of ranks."""
        return range(count * self.rank // self.count, count * (self.rank + 1) // self.count)

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """All processes leave this part of the work, or all of them with an error.

        Args:
            doing: What the part does, for the message.

        Raises:
            ProcessError: Another process failed in it, or ended.
        """
        own: Exception | None = None
        try:
            yield
        except ProcessError:
            raise  # The others do not answer any more.
        except Exception as error:
            own = error
        states = self.exchange("" if own is None else f"{type(own).__name__}: {own}")
        if own is not None:
            raise own
        for rank, state in enumerate(states):
            if state:
                raise ProcessError(f"process {rank} failed while {doing}: {state}")

    def exchange(self, text: str) -> list[str]:
        """The text that each process gives, in the order of ranks."""
        if self.count == 1:
            return [text]
        data = torch.tensor(list(text.encode()), dtype=torch.uint8)
        sizes = self._gather(torch.tensor([len(data)]))
        width = max(1, max(int(size) for size in sizes))
        padded = torch.zeros(width, dtype=torch.uint8)
        padded[: len(data)] = data
        return [
            bytes(part[: int(size)].tolist()).decode()
            for part, size in zip(self._gather(padded), sizes, strict=True)
        ]

    def total(self, number: int) -> int:
        """The sum of a number over the processes."""
        return sum(int(text) for text in self.exchange(str(number)))

    def rows(self, own: Tensor | None) -> Tensor:
        """The rows (B_r, ...) that the processes have, one after the other, on the CPU.

        Args:
            own: Rows of this process, of one dtype and width in all of them; None: it has none.

        Raises:
            ProcessError: Nobody has any; or they differ in width or dtype.
        """
        if self.count == 1 and own is not None:
            return own
        rows = torch.empty(0) if own is None else own.cpu().contiguous()
        shape = [] if own is None else [len(rows), list(rows.shape[1:]), str(rows.dtype)]
        shapes = [json.loads(text) for text in self.exchange(json.dumps(shape))]
        kinds = {json.dumps(each[1:]) for each in shapes if each}
        if len(kinds) != 1:
            raise ProcessError(f"the processes have rows of widths and dtypes {sorted(kinds)}")
        width, name = json.loads(kinds.pop())
        dtype = getattr(torch, name.removeprefix("torch."))
        parts = []
        for rank, each in enumerate(shapes):
            if each and each[0]:
                mine = rank == self.rank
                part = rows if mine else torch.empty((each[0], *width), dtype=dtype)
                # As bytes: a backend does not know every dtype.
                moved = self._broadcast(part.reshape(-1).view(torch.uint8), rank)
                parts.append(moved.view(dtype).reshape(part.shape))
        return torch.cat(parts)

    def _broadcast(self, tensor: Tensor, rank: int) -> Tensor:
        source = rank if self._group is None else dist.get_global_rank(self._group, rank)
        moved = tensor.to(self._device)
        with _failing_clearly():
            dist.broadcast(moved, source, group=self._group)
        return moved.cpu()

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        moved = tensor.to(self._device)
        gathered = [torch.empty_like(moved) for _ in range(self.count)]
        with _failing_clearly():
            dist.all_gather(gathered, moved, group=self._group)
        return [part.cpu() for part in gathered]


@contextmanager
def _failing_clearly() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"another process of the job has ended, or does not answer ({error}); see its own "
            "output for the reason, then start the job again: what writes to a path goes on where "
            "it was"
        ) from error
