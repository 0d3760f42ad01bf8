"""Two processes of one job, as torchrun starts them."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.runs import evaluation

# One of the processes; with something done first.
ONE_OF_THE_PROCESSES = """
import contextlib, os, sys
os.environ.update({environment!r})
os.chdir({folder!r})
sys.path.insert(0, os.getcwd())
from benchmarks.runs import evaluation
from benchmarks.__main__ import main
{first}
with open({log!r}, "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
    code = main({words!r})
os._exit(code)
"""

TwoProcesses = Callable[..., list[int | None]]


@pytest.fixture
def run_by_two_processes(monkeypatch: pytest.MonkeyPatch) -> TwoProcesses:
    """Runs a command (words, and code that the second does first); gives the exit codes.

    What was printed is in a log of each, in the working folder.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(evaluation.__file__).parents[2]))

    def run(words: Sequence[str], first: str = "") -> list[int | None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # A server that has imported everything starts them: that takes most of the time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.commands.localize"])
        processes = []
        for rank in range(2):
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            code = ONE_OF_THE_PROCESSES.format(
                environment=environment,
                folder=os.getcwd(),
                first=first if rank else "",
                log=f"log{rank}.txt",
                words=list(words),
            )
            process = context.Process(
                target=exec, args=(f"import os; os.chdir({os.getcwd()!r})" + code, {})
            )
            process.start()
            processes.append(process)
        for process in processes:
            process.join(120)
        return [process.exitcode for process in processes]

    return run
