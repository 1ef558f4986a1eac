"""Caches: what a decoder remembers of earlier tokens, an input (past) and an output (present).

They are paired by dataflow alone: a present holds the numbers of its past, brought there by nodes
that only move numbers about, and what is joined to them on the way does not depend on them. Names
are never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from .graph import Kind, Node
from .lengths import Dim, Length
from .onnx_dims import Lengths
from .onnx_file import OnnxModel
from .onnx_ops import CACHE_SLOTS, MOVING


@dataclass(frozen=True)
class Cache:
    """The graph input `past` and the graph output `present` that holds its numbers, too."""

    past: str
    present: str


def find_caches(model: OnnxModel) -> tuple[Cache, ...]:
    """All pairs, in the order of the outputs.

    For every value two sets of pasts, as bits: those it depends on, and those whose numbers it
    holds.
    """
    graph = model.graph
    pasts = [name for name in graph.inputs if graph.value(name).is_float]
    depends = {name: 1 << bit for bit, name in enumerate(pasts)}
    holds = dict(depends)
    for node in graph.nodes:
        if node.kind is Kind.SHAPE:
            continue
        behind = merged = 0
        for name in node.inputs:
            behind |= depends.get(name, 0)
            merged |= depends.get(name, 0) & ~holds.get(name, 0)
        depends.update((name, behind) for name in node.outputs if name)
        for made, sources in _moved(node, model.proto.graph.node[node.index]):
            held = 0
            for source in sources:
                held |= holds.get(source, 0)
            holds[made] = held & ~merged
    return tuple(
        Cache(past, present)
        for present in dict.fromkeys(graph.outputs)
        for bit, past in enumerate(pasts)
        if holds.get(present, 0) >> bit & 1 and present != past
    )


def _moved(node: Node, proto: onnx.NodeProto) -> Iterator[tuple[str, Sequence[str]]]:
    """Outputs of a node that hold numbers of inputs, with these."""
    if node.op in CACHE_SLOTS:
        for source, made in CACHE_SLOTS[node.op]:
            if source < len(proto.input) and made < len(proto.output) and proto.output[made]:
                yield proto.output[made], (proto.input[source],)
    elif node.op in MOVING:
        for name in proto.output:
            yield name, proto.input if node.op == "Concat" else proto.input[:1]


def equally_long(model: OnnxModel) -> tuple[tuple[Length, ...], ...]:
    """Lengths of pasts that are equal at every step of a generation.

    Caches that get equally many rows in every step are equally long, since they begin so: empty, or
    as an earlier run left them.
    """
    lengths = Lengths(model)
    alike: dict[tuple[int, Dim], list[Length]] = {}
    for cache in find_caches(model):
        growth = _growth(model, lengths, cache)
        if growth is not None:
            alike.setdefault(growth, []).append(Length(cache.past, growth[0]))
    return tuple(map(tuple, alike.values()))


def _growth(model: OnnxModel, lengths: Lengths, cache: Cache) -> tuple[int, Dim] | None:
    """Along which axis, and by how many rows a step, a cache grows.

    None unless the present is just the past with rows behind it.
    """
    maker = model.graph.producer.get(cache.present)
    while maker is not None and maker.op == "Identity":
        maker = model.graph.producer.get(maker.inputs[0])
    past, present = lengths.shape(cache.past), lengths.shape(cache.present)
    if maker is None or maker.op != "Concat" or len(maker.inputs) != 2:
        return None
    if past is None or present is None:
        return None
    before, rows = (lengths.shape(name) for name in maker.inputs)
    ranks = {len(dims) for dims in (past, present, before or (), rows or ())}
    proto = model.proto.graph.node[maker.index]
    axis = next((a.i for a in proto.attribute if a.name == "axis"), 0)
    rank = ranks.pop()
    if ranks or before is None or rows is None or not -rank <= axis < rank:
        return None
    axis %= rank
    return (axis, rows[axis]) if before[axis] == past[axis] else None
