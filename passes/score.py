"""Score: find the streams of a model and measure how redundant each unit and block of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..calibration.metrics.affine_r2 import affine_r2
from ..calibration.metrics.block_redundancy import block_redundancy
from ..calibration.runtime import Runner
from ..calibration.solve import Solution, solve, solve_held_out
from ..calibration.sweep import Pair, Statistics, observe_shapes, sweep
from ..ir.blocks import Anatomy, anatomy
from ..ir.cuts import find_chains
from ..ir.errors import Unsupported
from ..ir.graph import Graph
from ..ir.onnx_file import OnnxModel
from ..ir.spans import ObservedShapes, Refusal, Span, prove
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
    statistics: Statistics
    pair: Pair

    def solved_on_both(self) -> Solution:
        """The map solved once more, on fit and select together, its ridge as chosen before."""
        return solve(self.statistics.moments(self.pair), [self.solution.ridge])[0]

    @property
    def block_influence(self) -> float:
        return 1.0 - self.cosine

    @property
    def affine_error(self) -> float:
        """E |y - x W - b|^2 / tr(Cyy) on the select split."""
        return 1.0 - self.affine_r2


@dataclass(frozen=True)
class Survey:
    """The streams of a model and the redundancy of their units and blocks."""

    anatomies: tuple[Anatomy, ...]
    observed: ObservedShapes
    spans: tuple[Redundancy, ...]
    refusals: tuple[Refusal, ...]


def anatomies(model: OnnxModel) -> tuple[Anatomy, ...]:
    """The streams of a model, their units and blocks. Raises Unsupported where there is none."""
    graph = model.graph
    chains = find_chains(graph)
    if not chains:
        raise Unsupported(
            "no cut points: from no floating input or embedding does everything run through one "
            f"value before the outputs {', '.join(graph.outputs)}; there is no block to replace"
        )
    return tuple(anatomy(graph, chain) for chain in chains)


def offered(
    graph: Graph, streams: Sequence[Anatomy], observed: ObservedShapes | None
) -> tuple[list[Span], list[Refusal]]:
    """The spans of single units and single blocks, and the refusals among them.

    Raises Unsupported where nothing at all is offered.
    """
    spans: list[Span] = []
    refusals: list[Refusal] = []
    largest = (-1, "")
    for stream in streams:
        ends = [(u.start, u.stop) for u in stream.units]
        ends += [(b.start, b.stop) for b in stream.blocks]
        for start, stop in dict.fromkeys(ends):
            proved = prove(graph, stream, start, stop, observed)
            if isinstance(proved, Span):
                spans.append(proved)
            else:
                refusals.append(proved)
                size = sum(unit.parameters for unit in stream.units[start:stop])
                why = f"; {proved.name}: {proved.reason} ({proved.node})"
                largest = max(largest, (size, why), key=lambda found: found[0])
    if not spans:
        raise Unsupported(
            f"no span can be replaced: {len(streams[0].chain.cuts)} cut points and not two "
            f"neighbours of one shape with nothing leading round{largest[1]}"
        )
    return spans, refusals


def observe(task: Task, streams: Sequence[Anatomy]) -> ObservedShapes:
    """Shapes of all cut values on two batches of the fit split."""
    cuts = [cut for stream in streams for cut in stream.chain.cuts]
    values = [value for cut in cuts for value in cut.values]
    runner = Runner(task.plain, task.runtime, values)
    return observe_shapes(runner, task.data, task.splits.fit, values)


def score(task: Task) -> Survey:
    """Survey units and blocks in one sweep over the fit and select splits."""
    graph = task.plain.graph
    streams = anatomies(task.plain)
    observed = observe(task, streams)
    spans, refusals = offered(graph, streams, observed)
    return Survey(streams, observed, tuple(measure(task, spans, "survey")), tuple(refusals))


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
    both = fit.merged(select)
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
                statistics=both,
                pair=pair,
            )
        )
    return found
