"""Ranking: candidate architectures by quality, redundancy and cost, the trade-off left open.

RedTest (arXiv 2411.10507) scores candidates by MSRS beside their quality and leaves unsaid how one
pays for the other. Here the Pareto set is told: the candidates that no other one beats in quality,
in the share of similar layers and in latency at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..calibration.latency import Profile, time_models
from ..calibration.quality import AGAINST_LABELS, Outputs, Scorer
from ..calibration.runtime import Runner
from ..ir.errors import BadInput
from .layout import lay_out
from .similarity import similarity
from .task import Task


@dataclass(frozen=True)
class Candidate:
    """One candidate.

    `quality` is the mean score on the select and certify splits, higher is better; `msrs` and
    `msrs_per_pair` are those of the stream of most layers, on the fit split.
    """

    name: str
    quality: float
    msrs: float
    msrs_per_pair: float
    blocks: int
    parameters: int
    latency_ms: float
    is_pareto: bool = False


def rank(tasks: Sequence[tuple[str, Task]], profile: Profile) -> tuple[Candidate, ...]:
    """The candidates, those of the Pareto set first, each group by quality.

    Raises BadInput where they take different inputs, or the metric compares with an original.
    """
    _require_comparable(tasks)
    first = tasks[0][1]
    with first.stage("latency of candidates", 1) as advance:
        timings = time_models([task.model for _, task in tasks], first.runtime, profile)
        advance(1)
    found = []
    for (name, task), timing in zip(tasks, timings, strict=True):
        layout = lay_out(task)
        streams = similarity(task, layout)
        if not streams:
            raise BadInput(
                f"{name}: {len(task.splits.fit)} samples to compare layers on are too few; give "
                "more data or a larger first part of --split"
            )
        widest = max(streams, key=lambda stream: len(stream.cka))
        found.append(
            Candidate(
                name,
                _quality(task),
                widest.msrs,
                widest.msrs_per_pair,
                sum(len(stream.blocks) for stream in layout.anatomies),
                task.model.graph.parameters_stored,
                timing.median_ms,
            )
        )
    return _sorted(found)


def _require_comparable(tasks: Sequence[tuple[str, Task]]) -> None:
    (first, one), *others = tasks
    for name, task in others:
        if _inputs(task) != _inputs(one):
            raise BadInput(f"{name} and {first} take different inputs, so no data can rank them")
    if one.own is None and one.metric not in AGAINST_LABELS:
        raise BadInput(
            f"{one.metric} compares with an original, and candidates have none: add `labels` to "
            "the data, or give a --metric module:attribute"
        )


def _inputs(task: Task) -> set[tuple[str, str | None, int]]:
    return {(v.name, v.dtype, len(v.shape or ())) for v in task.model.inputs}


def _quality(task: Task) -> float:
    runner = Runner(task.model, task.runtime)
    scorer = Scorer(task.metric, task.own)
    samples = np.sort(np.concatenate([task.splits.select, task.splits.certify]))
    with task.stage("quality", len(samples)) as advance:
        for batch in task.data.batches(samples, runner.fixed_batch or task.batch):
            output = runner(batch.feeds)[task.output]
            labels = task.labels(batch.samples)
            scorer.add(Outputs(output, output, labels, task.padding(batch)))
            advance(len(batch.samples))
    return float(scorer.scores().after.mean())


def _sorted(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    found = [
        Candidate(**{**vars(c), "is_pareto": not any(_beats(other, c) for other in candidates)})
        for c in candidates
    ]
    return tuple(sorted(found, key=lambda c: (not c.is_pareto, -c.quality, c.msrs_per_pair)))


def _beats(a: Candidate, b: Candidate) -> bool:
    """Whether a is no worse than b in anything and better in something."""
    one, other = ((-c.quality, c.msrs_per_pair, c.latency_ms) for c in (a, b))
    return one != other and all(x <= y for x, y in zip(one, other, strict=True))
