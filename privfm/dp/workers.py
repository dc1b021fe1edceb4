"""Jobs worked off by several fresh interpreters, whatever program asks.

`multiprocessing` has its workers import the program's main module: a script without a main guard would run twice, and
one from standard input cannot be found. These workers run a line of their own, and speak JSON, one job or reply a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["ask_workers", "serve"]


def ask_workers(program: str, jobs: Sequence[Any], processes: int) -> list[Any]:
    """Replies to `jobs`, in their order; None where none came: the worker could not start, failed or ended early.

    Args:
        program: Python of one line that calls `serve`.
        jobs: JSON values.

    >>> ask_workers("from privfm.dp.workers import serve; serve(lambda job: job + 1)", [1, 2, "three"], 2)
    [2, 3, None]
    """
    waiting = deque(enumerate(jobs))
    replies: list[Any] = [None] * len(jobs)
    with ThreadPoolExecutor(processes) as pool:
        try:
            list(pool.map(lambda _: _work_off(program, waiting, replies), range(processes)))
        finally:
            waiting.clear()  # when interrupted, nobody takes another job
    return replies


def _work_off(program: str, waiting: deque[tuple[int, Any]], replies: list[Any]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", program]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True, env=environment) as worker:
            if worker.stdin is None or worker.stdout is None:
                return
            while waiting:
                number, job = waiting.popleft()
                worker.stdin.write(json.dumps(job) + "\n")
                worker.stdin.flush()
                reply = worker.stdout.readline()
                if not reply:
                    return
                replies[number] = json.loads(reply)
    except (OSError, ValueError, IndexError):  # no interpreter, a broken pipe, no JSON; or another took the last job
        return


def serve(function: Callable[[Any], Any]) -> None:
    """Answer the jobs on standard input with what `function` makes of them, and with null where it refuses one."""
    for line in sys.stdin:
        try:
            reply = function(json.loads(line))
        except (TypeError, ValueError):
            reply = None
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
