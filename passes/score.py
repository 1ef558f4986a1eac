"""Score: measure how redundant each unit and block of a model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..calibration.metrics.affine_r2 import affine_r2
from ..calibration.metrics.block_redundancy import block_redundancy
from ..calibration.runtime import Runner
from ..calibration.solve import Solution, solve_held_out
from ..calibration.sweep import Pair, sweep
from ..ir.spans import Span
from .layout import Layout, lay_out
from .similarity import Similarity, similarity
from .task import Task


@dataclass(frozen=True)
class Redundancy:
    """A span, how redundant it is, and its affine map.

    block_redundancy and cosine are over the fit split; affine_r2 and identity_error (E |y - x|^2 /
    tr(Cyy)) over the select split, which the map was not solved on.
    """

    span: Span
    solution: Solution
    block_redundancy: float
    cosine: float
    affine_r2: float
    identity_error: float

    @property
    def block_influence(self) -> float:
        return 1.0 - self.cosine


@dataclass(frozen=True)
class Survey:
    """The layout of a model and the redundancy of its units and blocks that keep the shape."""

    layout: Layout
    spans: tuple[Redundancy, ...]
    similarities: tuple[Similarity, ...] = ()


def score(task: Task) -> Survey:
    """Survey units and blocks in a sweep over the fit and select splits, and layers on fit."""
    layout = lay_out(task)
    spans = [span for span in layout.spans if not span.strides]
    return Survey(layout, tuple(measure(task, spans, "survey")), similarity(task, layout))


def measure(task: Task, spans: Sequence[Span], stage: str) -> list[Redundancy]:
    """Moments of the spans' ends over the fit and select splits, and what follows from them."""
    if not spans:
        return []
    pairs = [Pair(span.entry, span.exit, span.channel_axis) for span in spans]
    taps = list(dict.fromkeys(value for pair in pairs for value in (pair.x, pair.y)))
    runner = Runner(task.plain, task.runtime, taps)
    halves = (task.splits.fit, task.splits.select)
    with task.stage(stage, sum(map(len, halves))) as advance:
        fit, select = (
            sweep(runner, task.data, half, pairs, task.batch, mask=task.mask, progress=advance)
            for half in halves
        )
    found = []
    for span, pair in zip(spans, pairs, strict=True):
        seen, held = fit.moments(pair), select.moments(pair)
        solution = solve_held_out(seen, held)
        found.append(
            Redundancy(
                span=span,
                solution=solution,
                block_redundancy=block_redundancy(seen),
                cosine=fit.cosine(pair),
                affine_r2=affine_r2(held, solution),
                identity_error=held.error(None, None) / (held.variance or 1.0),
            )
        )
    return found
