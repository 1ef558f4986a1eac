"""Channels: on which axis of a value they are.

A surrogate is a matrix over the channels. No file says where they are; the operators around a value
do, each by the axis that it multiplies or normalises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from .graph import Graph, Kind, Shape

ObservedShapes = Mapping[str, Sequence[tuple[int, ...]]]
"""Per value, the shapes it took on calibration batches of different size."""

FAR = 256
"""Values looked through for an operator with an opinion: who is further away has none."""

KEEPS_LAYOUT = frozenset({Kind.POINTWISE, Kind.ADD, Kind.NORM})

Order = tuple[int, ...] | None
"""Which axis of the value in question each axis of another is; None where they are the same."""


def channel_axis(graph: Graph, name: str, observed: ObservedShapes | None) -> int:
    """Axis of the channels of a value, told by the nearest operator that has an opinion.

    Readers are asked first, then makers, looking through operations that keep the layout; only if
    none of them has a say, those behind operations that order the axes anew. Values no one has an
    opinion on are taken by rank: 4 axes or more as feature maps, fewer as tokens.
    """
    for turning in (False, True):
        for ask in (_readers_opinions, _makers_opinions):
            for axis in ask(graph, name, turning):
                return axis
    return 1 if len(any_shape(graph, name, observed)) >= 4 else -1


def _readers_opinions(graph: Graph, name: str, turning: bool) -> Iterator[int]:
    queue: deque[tuple[str, Order]] = deque([(name, None)])
    seen = {name}
    while queue and len(seen) < FAR:
        value, order = queue.popleft()
        readers = graph.consumers.get(value, ())
        for node in readers:
            if node.channel_axis is not None and node.inputs[0] == value:
                yield from _seen_from(node.channel_axis, order)
        for node in readers:
            behind = order
            if turning and node.permutation is not None:
                behind = _turned(order, node.permutation)
            if behind is order and node.kind not in KEEPS_LAYOUT:
                continue
            fresh = [out for out in node.outputs if out and out not in seen]
            seen.update(fresh)
            queue += [(out, behind) for out in fresh]


def _makers_opinions(graph: Graph, name: str, turning: bool) -> Iterator[int]:
    queue: deque[tuple[str, Order]] = deque([(name, None)])
    seen = {name}
    while queue and len(seen) < FAR:
        value, order = queue.popleft()
        node = graph.producer.get(value)
        if node is None:
            continue
        if node.channel_axis is not None:
            yield from _seen_from(node.channel_axis, order)
            continue
        before = order
        if turning and node.permutation is not None:
            before = _turned(order, _back(node.permutation))
        if before is order and node.kind not in KEEPS_LAYOUT:
            continue
        fresh = [read for read in node.inputs if read in graph.producer and read not in seen]
        seen.update(fresh)
        queue += [(read, before) for read in fresh]


def _turned(order: Order, turn: Sequence[int]) -> Order:
    """The order behind one more; the same where that one is of another number of axes."""
    if order is None:
        return tuple(turn)
    return tuple(order[axis] for axis in turn) if len(order) == len(turn) else order


def _back(turn: Sequence[int]) -> list[int]:
    """The permutation that undoes one."""
    return sorted(range(len(turn)), key=turn.__getitem__)


def _seen_from(axis: int, order: Order) -> Iterator[int]:
    """The axis as one of the value in question, where that is its second or its last."""
    if order is None:
        yield axis
    elif -len(order) <= axis < len(order):
        there = order[axis]
        if there in (1, len(order) - 1):
            yield -1 if there == len(order) - 1 else 1


def any_shape(graph: Graph, name: str, observed: ObservedShapes | None) -> Shape:
    """A shape of the value: one seen on the data, else the one the file states."""
    if observed is not None and observed.get(name):
        return observed[name][0]
    return graph.value(name).shape or ()
