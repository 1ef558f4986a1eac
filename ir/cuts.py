"""Cuts: the values that everything flowing from a source to a sink runs through.

No table of architectures: a residual join, the output of a stem, the pooled feature before a head
are cuts because no differentiable path goes round them. Masks, rotary tables, position ids and
shape arithmetic do not descend from the source and so never hide one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    """The cuts from one source to one sink, and the nodes between each two of them.

    `stretches[i]` holds the nodes on differentiable paths from `cuts[i].last` to
    `cuts[i + 1].first`, in topological order.
    """

    source: str
    sink: str
    cuts: tuple[Cut, ...]
    stretches: tuple[tuple[Node, ...], ...]


def find_chains(graph: Graph) -> tuple[Chain, ...]:
    """All chains of at least two cuts, the one that covers most parameters first.

    A further source contributes only the cuts that no accepted source reaches: past those, its
    values have joined a stream that is already described.
    """
    sinks = [name for name in graph.outputs if graph.value(name).is_float]
    candidates = []
    for source in _sources(graph):
        chains = [_chain(graph, source, sink) for sink in sinks]
        longest = max(chains, key=lambda chain: _covered(graph, chain), default=None)
        if longest is not None:
            candidates.append((_covered(graph, longest), longest))
    candidates.sort(key=lambda pair: -pair[0])

    accepted: list[Chain] = []
    reached: set[str] = set()
    for _, chain in candidates:
        fresh = [cut for cut in chain.cuts if reached.isdisjoint(cut.values)]
        if len(fresh) >= 2:
            kept = len(fresh)
            accepted.append(
                Chain(chain.source, fresh[-1].last, tuple(fresh), chain.stretches[: kept - 1])
            )
        reached |= graph.descendants([chain.source])
    return tuple(accepted)


def _sources(graph: Graph) -> Iterator[str]:
    """Floating inputs, and look-ups in a floating weight by an index that depends on an input."""
    yield from (name for name in graph.inputs if graph.value(name).is_float)
    for node in graph.nodes:
        if node.kind is Kind.LOOKUP and len(node.inputs) > 1:
            table, index = node.inputs[:2]
            from_weight = table not in graph.input_dependent and graph.constants_of[node.index]
            looked_up = node.outputs[0]
            if (
                from_weight
                and index in graph.input_dependent
                and not graph.value(looked_up).is_known_not_float
            ):
                yield looked_up


def _chain(graph: Graph, source: str, sink: str) -> Chain:
    """The cuts between source and sink in one topological sweep, O(nodes + edges).

    `live` counts, for every value made so far that lies on a path to the sink, the readers still
    to come. Whenever the value just made is the only live one, everything runs through it. The
    answer does not depend on the topological order: a value beside a cut would have a reader that
    neither leads to the cut nor comes from it, hence a path round it.
    """
    kept = graph.descendants([source]) & graph.ancestors([sink])
    if source not in kept or sink not in kept:
        return Chain(source, sink, (), ())

    def edges(node: Node) -> list[str]:
        pairs = zip(node.inputs, node.derivative, strict=True)
        return [name for name, smooth in pairs if smooth and name in kept]

    readers = dict.fromkeys(kept, 0)
    on_path = [n for n in graph.nodes if source not in n.outputs and not kept.isdisjoint(n.smooth)]
    on_path = [node for node in on_path if edges(node)]
    for node in on_path:
        for name in edges(node):
            readers[name] += 1

    values: list[str] = [source]
    stretches: list[tuple[Node, ...]] = []
    live, between = {source}, []
    for node in on_path:
        between.append(node)
        for name in edges(node):
            readers[name] -= 1
            if readers[name] == 0:
                live.discard(name)
        made = [name for name in node.smooth if name in kept]
        live.update(made)
        if live == set(made) and len(made) == 1:
            values += made
            stretches.append(tuple(between))
            between = []
    return _join(source, sink, values, stretches)


def _join(source: str, sink: str, values: list[str], stretches: list[tuple[Node, ...]]) -> Chain:
    """Merge neighbouring cut values that only cheap operations separate into one Cut."""
    places: list[list[str]] = [[values[0]]]
    kept: list[tuple[Node, ...]] = []
    for value, stretch in zip(values[1:], stretches, strict=True):
        if _is_cheap(stretch):
            places[-1].append(value)
        else:
            places.append([value])
            kept.append(stretch)
    return Chain(source, sink, tuple(Cut(tuple(place)) for place in places), tuple(kept))


def _is_cheap(stretch: tuple[Node, ...]) -> bool:
    """Views, pointwise ops and norms, whole or spelled out with reductions beside the path."""
    return stretch[-1].kind in JOINING and all(
        node.kind in JOINING or node.kind is Kind.REDUCE for node in stretch
    )


def _covered(graph: Graph, chain: Chain) -> int:
    """Parameters between neighbouring cuts whose static dimensions agree."""
    return sum(
        graph.parameters(node.index for node in stretch)
        for entry, exit_, stretch in zip(chain.cuts, chain.cuts[1:], chain.stretches, strict=False)
        if graph.static_dims_agree(entry.last, exit_.first)
    )
