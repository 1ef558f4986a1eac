"""Layout: the streams of a model, their units and blocks, and the spans of these that may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..calibration.runtime import Runner
from ..calibration.sweep import observe_shapes
from ..ir.blocks import Anatomy, anatomy
from ..ir.channels import ObservedShapes, channel_axis
from ..ir.cuts import find_chains
from ..ir.errors import Unsupported
from ..ir.graph import Graph
from ..ir.onnx_file import OnnxModel
from ..ir.spans import Refusal, Span, prove
from .task import Task

CACHES_MAY_GO = "an output that is a decoder's cache may go with its block: --drop-cache"


@dataclass(frozen=True)
class Layout:
    """The streams of a model, shapes seen on data, and its single units and blocks."""

    anatomies: tuple[Anatomy, ...]
    observed: ObservedShapes
    spans: tuple[Span, ...]
    refusals: tuple[Refusal, ...]

    @classmethod
    def of(
        cls,
        graph: Graph,
        streams: tuple[Anatomy, ...],
        observed: ObservedShapes,
        droppable: frozenset[str] = frozenset(),
    ) -> Layout:
        """Raises Unsupported where there is nothing to replace."""
        spans, refusals = offered(graph, streams, observed, droppable)
        return cls(streams, observed, tuple(spans), tuple(refusals))

    def channel_axis(self, graph: Graph, value: str) -> int:
        """Axis of the channels of a value at a cut."""
        return channel_axis(graph, value, self.observed)


def lay_out(task: Task) -> Layout:
    """The layout of a task's model. Raises Unsupported where there is nothing to replace."""
    streams = anatomies(task.plain)
    return Layout.of(task.plain.graph, streams, observe(task, streams), task.droppable)


def touchable(task: Task, layout: Layout) -> Layout:
    """The layout without the spans that the judged output does not depend on: refused.

    Raises Unsupported where none is left.
    """
    why = f"the output that is judged, {task.output!r}, does not depend on it"
    kept = [span for span in layout.spans if task.depends_on(span.exit)]
    lost = [span for span in layout.spans if not task.depends_on(span.exit)]
    if not kept:
        raise Unsupported(
            f"no span can be replaced: output {task.output!r}, which is judged, depends on none of "
            "them; judge by another with --output"
        )
    refusals = [span.refused(task.plain.graph, why) for span in lost]
    return replace(layout, spans=tuple(kept), refusals=(*layout.refusals, *refusals))


def cut_values(streams: Sequence[Anatomy]) -> list[str]:
    """Every value of every cut."""
    return [value for stream in streams for cut in stream.chain.cuts for value in cut.values]


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
    graph: Graph,
    streams: Sequence[Anatomy],
    observed: ObservedShapes | None,
    droppable: frozenset[str] = frozenset(),
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
            proved = prove(graph, stream, start, stop, observed, droppable)
            if isinstance(proved, Span):
                spans.append(proved)
            else:
                refusals.append(proved)
                size = sum(unit.parameters for unit in stream.units[start:stop])
                why = f"; {proved.name}: {proved.reason} ({proved.node})"
                largest = max(largest, (size, why), key=lambda found: found[0])
    if not spans:
        hint = f"; {CACHES_MAY_GO}" if any(refusal.output for refusal in refusals) else ""
        raise Unsupported(
            f"no span can be replaced: {len(streams[0].chain.cuts)} cut points and not two "
            f"neighbours of one shape with nothing leading round{largest[1]}{hint}"
        )
    return spans, refusals


def observe(task: Task, streams: Sequence[Anatomy]) -> ObservedShapes:
    """Shapes of all cut values on two batches of the fit split."""
    values = cut_values(streams)
    runner = Runner(task.plain, task.runtime, values, pooled=True)
    return observe_shapes(runner, task.data, task.splits.fit, values)
