"""Stops: the places along a model where a walk may halt and change the stream.

One for every cut that a node makes, in the order of the graph. Where the value is a sum that a
linear operation feeds, `value = residual + linear(u)`, the walk can make it from its terms, with
the weight that is there or a new one; that this gives the value is checked on data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..calibration.features import as_rows, rows_of
from ..calibration.runtime import Runner
from ..ir.blocks import Anatomy
from ..ir.channels import ObservedShapes, channel_axis
from ..ir.graph import Graph
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import Linear, linear_into, matrix, offset
from ..ir.onnx_reads import picked_positions
from ..ir.spans import Span
from .surrogates import linear_input
from .task import Task

TOLERANCE = 1e-3
"""How far a sum made from its terms may be off, as a share of its own size."""


@dataclass(frozen=True)
class Stop:
    """The first value of cut `cut` of a stream.

    `live` are other values that flow from a source and are still read after it: states of another
    stream, say. `picked` are the positions that alone are read from its stream in the end. Where it
    `is_aligned`, u of its linear operation has the axes of the sum, so both have one mean.
    """

    value: str
    stream: str
    cut: int
    channel_axis: int
    rank: int
    linear: Linear | None
    live: tuple[str, ...]
    picked: tuple[int, ...]
    is_aligned: bool = False

    def is_inside(self, span: Span) -> bool:
        """Whether replacing the span takes the value away, or makes it anew."""
        return self.stream == span.stream and span.start < self.cut <= span.stop


def find_stops(
    task: Task, streams: Sequence[Anatomy], observed: ObservedShapes
) -> tuple[Stop, ...]:
    """The stops of all streams, in the order of the graph."""
    model = task.plain
    graph = model.graph
    places = {
        cut.first: (stream, at)
        for stream in streams
        for at, cut in enumerate(stream.chain.cuts)
        if cut.first in graph.producer
    }
    values = sorted(places, key=lambda name: graph.producer[name].index)
    axes = {name: channel_axis(graph, name, observed) for name in values}
    found = {name: linear_into(model, name) for name in values}
    linears, aligned = _checked(task, found, axes)
    live = _live(graph, streams, values)
    picked = {stream.chain.source: picked_positions(model, stream.chain) for stream in streams}
    return tuple(
        Stop(
            value=name,
            stream=places[name][0].chain.source,
            cut=places[name][1],
            channel_axis=axes[name],
            rank=len(observed[name][0]),
            linear=linears.get(name),
            live=live[name],
            picked=picked[places[name][0].chain.source],
            is_aligned=name in aligned,
        )
        for name in values
    )


def _checked(
    task: Task, found: Mapping[str, Linear | None], axes: Mapping[str, int]
) -> tuple[dict[str, Linear], set[str]]:
    """The linear operations that do give their sums, row by row, on a few samples.

    Also the sums that u has the axes of, channels last.
    """
    linears = {name: linear for name, linear in found.items() if linear is not None}
    taps = [t for name, linear in linears.items() for t in (name, linear.u, linear.residual)]
    runner = Runner(task.plain, task.runtime, list(dict.fromkeys(taps)), pooled=True)
    samples = task.splits.fit[:2]
    batch = next(iter(task.data.batches(samples, runner.fixed_batch or 2)))
    seen = runner(batch.feeds)
    kept = {
        name: linear
        for name, linear in linears.items()
        if _gives(task.plain, linear, seen, axes[name])
    }
    aligned = {
        name
        for name, linear in kept.items()
        if linear.window is None
        and axes[name] in (-1, seen[name].ndim - 1)
        and seen[linear.u].shape[:-1] == seen[name].shape[:-1]
    }
    return kept, aligned


def _gives(model: OnnxModel, linear: Linear, seen: Mapping[str, np.ndarray], axis: int) -> bool:
    value, residual = seen[linear.value], seen[linear.residual]
    if value.shape != residual.shape or value.dtype != residual.dtype:
        return False
    u, y = rows_of(linear_input(linear), seen[linear.u]), as_rows(value, axis)
    W = matrix(model, linear)
    if u.shape != (len(y), len(W)) or W.shape[1] != y.shape[1]:
        return False
    made = as_rows(residual, axis) + (u @ W + offset(model, linear, y.shape[1]))
    size = float(np.abs(y).max()) or 1.0
    return bool(np.abs(made - y).max() <= TOLERANCE * size)


def _live(
    graph: Graph, streams: Sequence[Anatomy], values: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Per value, in the order of the graph: what else flows on past its place."""
    flowing = graph.descendants(stream.chain.source for stream in streams)
    last: dict[str, int] = {}
    for node in graph.nodes:
        if node.index in graph.needed:
            last.update((name, node.index) for name in node.inputs if name in flowing)
    found = {}
    for value in values:
        at = graph.producer[value].index
        found[value] = tuple(
            name
            for name, end in sorted(last.items())
            if name != value and name in graph.producer and graph.producer[name].index <= at < end
        )
    return found
