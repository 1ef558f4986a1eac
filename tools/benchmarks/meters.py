"""What work costs: seconds by stage, seconds of a plain pass, the peak of memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...calibration.runtime import Runner
from ...passes.task import Task

STATUS = Path("/proc/self/status")


class Clock:
    """A Stage that adds up what each stage of work took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, _total: int) -> Iterator[Callable[[int], None]]:
        begin = time.perf_counter()
        yield lambda _steps: None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


def peak_bytes() -> int:
    """The most memory this process has held.

    Linux tells it of this program alone; getrusage counts what its parent held, too.
    """
    if STATUS.exists():
        lines = STATUS.read_text().splitlines()
        (high,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(high) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def plain_pass(task: Task, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds, by the clock, of the model alone over all samples."""
    runner = Runner(task.model, task.runtime)
    size = runner.fixed_batch or task.batch
    begin = clock()
    for batch in task.data.batches(np.arange(task.data.samples), size):
        runner(batch.feeds)
    return clock() - begin
