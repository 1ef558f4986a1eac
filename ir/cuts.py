"""Cuts: the values that everything flowing from a source to a sink runs through.

No table of architectures: a residual join, the output of a stem, the pooled feature before a head
are cuts because no differentiable path goes round them. Masks, rotary tables, position ids and
shape arithmetic do not descend from a source and so never hide one.

In the terms of flow graphs a cut is a post-dominator. The post-dominators of ALL sources form one
tree with the sink as its root, so that one sweep finds the cuts of every stream and where streams
meet: encoder states join a decoder, keys of earlier tokens join the present ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .dominators import Tree
from .graph import JOINING, Graph, Kind, Node


@dataclass(frozen=True)
class Cut:
    """One place in the stream: values joined by views, pointwise ops or a norm, in order.

    `first` is what the operation before the place makes (a residual sum, say) and `last` what the
    operation after it reads (the same sum, normalised).
    """

    values: tuple[str, ...]

    @property
    def first(self) -> str:
        return self.values[0]

    @property
    def last(self) -> str:
        return self.values[-1]


@dataclass(frozen=True)
class Chain:
    """The cuts of one stream, from its source on, and the nodes between each two of them.

    `stretches[i]` holds the nodes on differentiable paths from `cuts[i].last` to
    `cuts[i + 1].first`, in topological order.
    """

    source: str
    sink: str
    cuts: tuple[Cut, ...]
    stretches: tuple[tuple[Node, ...], ...]


Step = tuple[str, tuple[Node, ...]]
"""A cut value and the nodes between the cut value before it and this one."""


def find_chains(graph: Graph) -> tuple[Chain, ...]:
    """All chains of at least two cuts, per sink the one that covers most parameters first.

    Streams meet, but no cut is in two chains: where they meet, the cut belongs to the stream that a
    residual sum carries on, else to the one that has covered more parameters. What lies inside a
    stretch of one chain is never a cut of another.
    """
    sources = tuple(_sources(graph))
    downstream = graph.descendants(sources)
    chains: list[Chain] = []
    claimed: set[str] = set()
    hidden: set[str] = set()
    for sink in _sinks(graph, downstream):
        for path in _Streams(graph, sources, sink, downstream).paths():
            fresh = _fresh(path, claimed, hidden)
            chain = _join(fresh) if fresh else None
            if chain is not None and (not chains or _covered(graph, chain)):
                chains.append(chain)
                claimed.update(value for value, _ in fresh)
                hidden.update(v for _, stretch in fresh for node in stretch for v in node.outputs)
    return tuple(chains)


def _sources(graph: Graph) -> list[str]:
    """Floating inputs, and look-ups in a floating weight by an index that depends on an input.

    In an order that does not depend on that of the nodes: inputs as they stand, then look-ups by
    the input they ask, the most direct ones first, then the larger tables.
    """
    found = [name for name in graph.inputs if graph.value(name).is_float]
    looked_up: list[tuple[int, int, int, str]] = []
    for node in graph.nodes:
        if node.kind is Kind.LOOKUP and len(node.inputs) > 1:
            table, index = node.inputs[:2]
            from_weight = table not in graph.input_dependent and graph.constants_of[node.index]
            made = node.outputs[0]
            if (
                from_weight
                and index in graph.input_dependent
                and not graph.value(made).is_known_not_float
            ):
                looked_up.append((*_asked(graph, index), -graph.parameters([node.index]), made))
    return found + [made for *_, made in sorted(looked_up, key=lambda key: key[:3])]


FAR_BACK = 1000


def _asked(graph: Graph, name: str) -> tuple[int, int]:
    """Number of the first graph input behind a value, and how many values are behind it.

    No further back than FAR_BACK values: an index is made in a few steps.
    """
    waiting, seen = [name], {name}
    while waiting and len(seen) < FAR_BACK:
        maker = graph.producer.get(waiting.pop())
        fresh = set(maker.inputs) - seen if maker is not None else set()
        seen |= fresh
        waiting += fresh
    return min((n for n, given in enumerate(graph.inputs) if given in seen), default=-1), len(seen)


def _sinks(graph: Graph, downstream: set[str]) -> list[str]:
    """Floating outputs, most parameters on the way first, each further one bringing new ones."""
    covered = dict.fromkeys(downstream, 0)
    for node in graph.nodes:
        made = [name for name in node.smooth if name in downstream]
        if made:
            before = max((covered[n] for n in node.inputs if n in downstream), default=0)
            covered.update(dict.fromkeys(made, before + graph.parameters([node.index])))
    outputs = [n for n in graph.outputs if n in downstream and graph.value(n).is_float]
    sinks: list[str] = []
    seen: set[int] = set()
    for sink in sorted(dict.fromkeys(outputs), key=lambda name: -covered[name]):
        fresh = _makers(graph, sink, seen)
        if graph.parameters(fresh) or not sinks:
            sinks.append(sink)
    return sinks


def _makers(graph: Graph, name: str, seen: set[int]) -> list[int]:
    """Nodes behind a value that are not in `seen`, which is extended by them."""
    found: list[int] = []
    waiting = [name]
    while waiting:
        maker = graph.producer.get(waiting.pop())
        if maker is not None and maker.index not in seen:
            seen.add(maker.index)
            found.append(maker.index)
            waiting += [name for name in maker.inputs if name]
    return found


class _Approach(NamedTuple):
    """How a stream comes to a cut. Of several the greatest, in this order, goes on from there."""

    carried: bool  # sums and cheap operations alone lead to the cut
    depth: int  # residual sums in a row up to it
    alone: int  # minus the other streams that join on the way
    covered: int  # parameters up to it
    rank: int  # minus the place of the source among the sources
    value: str
    stretch: tuple[Node, ...]


class _Streams:
    """The cuts of all sources towards one sink, and which stream each belongs to."""

    def __init__(
        self, graph: Graph, sources: Sequence[str], sink: str, downstream: set[str]
    ) -> None:
        self.graph = graph
        self.rank = {source: -place for place, source in enumerate(sources)}
        self.sink = sink
        self.kept = downstream & graph.ancestors([sink])
        self.tree = self._tree()
        self.next: dict[str, str] = {}
        for source in sources:
            value = source if source in self.kept else sink
            while value != sink and value not in self.next:
                self.next[value] = value = self._next(value)
        self.chosen: dict[str, _Approach] = {}
        self._choose()

    def _tree(self) -> Tree[str | int]:
        """Post-dominators of the kept values (by name) and of the nodes between (by index)."""
        tree = Tree[str | int](self.sink)
        graph = self.graph
        for node in reversed(graph.nodes):
            made = [name for name in node.smooth if name in self.kept]
            for name in made:
                self._hang(tree, name)
            if made:
                tree.hang(node.index, made)
        for name in graph.inputs:
            if name in self.kept:
                self._hang(tree, name)
        return tree

    def _hang(self, tree: Tree[str | int], name: str) -> None:
        if name != self.sink:
            tree.hang(name, [node.index for node in self._readers(name)])

    def _readers(self, name: str) -> list[Node]:
        """Nodes through which a derivative flows on from the value to the sink."""
        return [
            node
            for node in self.graph.differentiating.get(name, ())
            if not self.kept.isdisjoint(node.smooth)
        ]

    def _next(self, value: str) -> str:
        """The next cut on every path from `value` to the sink."""
        vertex = self.tree.parent(value)
        while not isinstance(vertex, str):
            vertex = self.tree.parent(vertex)
        return vertex

    def _choose(self) -> None:
        """For each cut, front to back, the stream that it belongs to."""
        order = dict.fromkeys(self.graph.inputs, -1)
        order |= {name: node.index for node in self.graph.nodes for name in node.outputs}
        before: dict[str, list[str]] = {}
        for value, following in self.next.items():
            before.setdefault(following, []).append(value)
        for cut in sorted(before, key=order.__getitem__):
            approaches = [self._approach(value, cut, before[cut]) for value in before[cut]]
            self.chosen[cut] = max(approaches, key=lambda approach: approach[:5])

    def _approach(self, value: str, cut: str, others: Sequence[str]) -> _Approach:
        """From one cut to the next; `others` are the cuts that come before the same one."""
        stretch = self._between(value, cut)
        carried = is_residual([value], stretch, cut)
        closed = carried and closes_a_residual([value], stretch)
        passed = {name for node in stretch for name in node.outputs}
        behind = self.chosen.get(value)
        depth, covered, rank = (
            (0, 0, self.rank[value])
            if behind is None
            else (behind.depth, behind.covered, behind.rank)
        )
        return _Approach(
            carried,
            depth + closed if carried else 0,
            -len(passed.intersection(others)),
            covered + _weight(self.graph, value, cut, stretch),
            rank,
            value,
            stretch,
        )

    def _between(self, start: str, stop: str) -> tuple[Node, ...]:
        """Nodes on differentiable paths from one cut to a later one, in topological order."""
        found: dict[int, Node] = {}
        waiting = [start]
        while waiting:
            for node in self._readers(waiting.pop()):
                if node.index not in found:
                    found[node.index] = node
                    waiting += [v for v in node.smooth if v in self.kept and v != stop]
        return tuple(found[index] for index in sorted(found))

    def paths(self) -> list[list[Step]]:
        """Each stream as its cut values in order, the stream with most parameters first."""
        inner = {approach.value for approach in self.chosen.values()}
        ends = [value for value in dict.fromkeys([*self.next, self.sink]) if value not in inner]
        return [self._path(end) for end in sorted(ends, key=lambda name: -self._covered(name))]

    def _covered(self, cut: str) -> int:
        return self.chosen[cut].covered if cut in self.chosen else 0

    def _path(self, end: str) -> list[Step]:
        steps: list[Step] = []
        value = end
        while value in self.chosen:
            approach = self.chosen[value]
            steps.append((value, approach.stretch))
            value = approach.value
        return [(value, ()), *reversed(steps)]


def _weight(graph: Graph, start: str, stop: str, stretch: Iterable[Node]) -> int:
    """Parameters between two cuts, if one map could stand there."""
    agree = graph.static_dims_agree(start, stop)
    return graph.parameters(node.index for node in stretch) if agree else 0


def is_residual(entries: Iterable[str], stretch: Iterable[Node], exit_: str) -> bool:
    """Whether sums and cheap operations alone lead from one cut to the next."""
    reached = set(entries)
    for node in stretch:
        if node.kind in JOINING and not reached.isdisjoint(node.inputs):
            reached.update(node.outputs)
    return exit_ in reached


def closes_a_residual(entries: Iterable[str], stretch: Iterable[Node]) -> bool:
    """Whether some sum in the stretch joins two values that both come from its entry."""
    nodes = tuple(stretch)
    stream = set(entries).union(*(node.smooth for node in nodes))
    sums = (node for node in nodes if node.kind is Kind.ADD)
    return any(sum(name in stream for name in node.inputs) >= 2 for node in sums)


def _fresh(path: list[Step], claimed: set[str], hidden: set[str]) -> list[Step]:
    """The part of a path that no chain describes yet: it may branch off one, not run inside one."""
    start = max((i for i, (value, _) in enumerate(path) if value in claimed), default=0)
    fresh = path[start : start + 1]
    for step in path[start + 1 :]:
        if step[0] in hidden:
            break
        fresh.append(step)
    is_inside = fresh[0][0] in hidden and fresh[0][0] not in claimed
    return [] if is_inside else [(fresh[0][0], ()), *fresh[1:]]


def _join(path: list[Step]) -> Chain | None:
    """Merge neighbouring cut values that only cheap operations separate into one Cut."""
    places: list[list[str]] = [[path[0][0]]]
    kept: list[tuple[Node, ...]] = []
    for value, stretch in path[1:]:
        if _is_cheap(stretch):
            places[-1].append(value)
        else:
            places.append([value])
            kept.append(stretch)
    if len(places) < 2:
        return None
    cuts = tuple(Cut(tuple(place)) for place in places)
    return Chain(path[0][0], path[-1][0], cuts, tuple(kept))


def _is_cheap(stretch: tuple[Node, ...]) -> bool:
    """Views, pointwise ops and norms, whole or spelled out with reductions beside the path."""
    return stretch[-1].kind in JOINING and all(
        node.kind in JOINING or node.kind is Kind.REDUCE for node in stretch
    )


def _covered(graph: Graph, chain: Chain) -> int:
    """Parameters between neighbouring cuts whose static dimensions agree."""
    return sum(
        _weight(graph, entry.last, exit_.first, stretch)
        for entry, exit_, stretch in zip(chain.cuts, chain.cuts[1:], chain.stretches, strict=False)
    )
