"""Sweep: statistics of pairs of values on a task's samples, by whatever runs them fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from ..calibration.graph_moments import GraphSweep
from ..calibration.runtime import PROVIDERS, Runner
from ..calibration.sweep import Pair, Statistics, sweep
from .similarity import MOST_SAMPLES, Layers
from .task import Advance, Samples, Task

TAPPED_BYTES = 2**24
"""What the values tapped in a batch may take: they are all at hand at once, some as float64."""


class AnySweep(Protocol):
    """Gives statistics of its pairs on samples, and shows `layers` those that are compared."""

    def __call__(self, samples: Samples, advance: Advance, layers: Layers | None) -> Statistics: ...


ChooseSweep = Callable[[Task, Sequence[Pair], Sequence[str]], AnySweep]
"""Makes a sweep over pairs that taps further values, too."""


def compared(task: Task, samples: Samples) -> Samples:
    """Those of the samples that layers are compared on."""
    return np.intersect1d(samples, task.splits.fit[:MOST_SAMPLES])


class Sweep:
    """With onnxruntime, in a session that stays open from call to call.

    On the CPU one pass serves moments and layers. On CUDA the products are made on the device,
    which on the CPU is no faster, and only values that layers are compared by are fetched.
    """

    def __init__(self, task: Task, pairs: Sequence[Pair], taps: Sequence[str] = ()) -> None:
        self._task, self._pairs = task, pairs
        self._graph: GraphSweep | None = None
        self._runner: Runner | None = None
        if pairs and task.runtime.provider == PROVIDERS["cuda"]:
            self._graph = GraphSweep(task.plain, task.runtime, pairs)
        else:
            ends = [value for pair in pairs for value in (pair.x, pair.y)]
            self._runner = Runner(
                task.plain, task.runtime, list(dict.fromkeys([*ends, *taps])), pooled=True
            )

    def __call__(self, samples: Samples, advance: Advance, layers: Layers | None) -> Statistics:
        task = self._task
        shown = samples[:0] if layers is None else compared(task, samples)
        if self._graph is not None:
            if layers is not None:
                layers.run(shown)
            return self._graph(task.data, samples, task.batch, mask=task.mask, progress=advance)
        assert self._runner is not None
        batch = _fitting(self._runner, task, samples)
        found = Statistics(self._pairs)
        for part, watch in (
            (shown, None if layers is None else layers.add),
            (np.setdiff1d(samples, shown), None),
        ):
            found = found.merged(
                sweep(
                    self._runner,
                    task.data,
                    part,
                    self._pairs,
                    batch,
                    mask=task.mask,
                    progress=advance,
                    watch=watch,
                )
            )
        return found


def _fitting(runner: Runner, task: Task, samples: Samples) -> int:
    """The task's batch, or a smaller one where a batch of all that is tapped would be large."""
    sizes = [
        sum(value.nbytes for value in runner(batch.feeds).values())
        for batch in task.data.batches(samples[:1], runner.fixed_batch or 1)
    ]
    return max(1, min(task.batch, TAPPED_BYTES // (max(sizes, default=0) or 1)))
