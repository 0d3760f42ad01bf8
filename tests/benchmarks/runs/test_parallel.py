import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Starts a worker as the benchmark does, without a network, and waits for ever.
MAIN = """
import multiprocessing, time

def worker(queue):
    from benchmarks.runs import parallel
    parallel.Evaluator = lambda plan: None
    parallel.start_worker(None, 1)
    queue.put(multiprocessing.current_process().pid)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=worker, args=(queue,)).start()
    print(queue.get(), flush=True)
    time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_of_a_killed_run_do_not_live_on(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    started = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    worker = int(started.stdout.readline())
    try:
        assert is_running(worker)
        started.kill()
        started.wait()
        deadline = time.monotonic() + 60
        while is_running(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(worker)
    finally:
        if is_running(worker):
            os.kill(worker, signal.SIGKILL)
