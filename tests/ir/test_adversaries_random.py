"""Random graphs against the definitions: cuts, stretches, what a substitution frees, spans."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable

import pytest

from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import Chain, find_chains
from blockfold.ir.graph import Constant, Graph, Kind, Node, Value
from blockfold.ir.spans import Refusal, Span, prove

KINDS = [Kind.OTHER, Kind.OTHER, Kind.ADD, Kind.ADD, Kind.POINTWISE, Kind.NORM, Kind.VIEW]


def random_graph(
    seed: int, *, sources: int = 1, sinks: int = 1, reach: int | None = None, shapes: float = 0.1
) -> Graph:
    """A graph of up to 30 operations of one or two outputs, some inputs without a derivative.

    Values that nothing reads are gathered by the operations that make the sinks, the last ones.
    """
    rng = random.Random(seed)
    inputs = [f"x{i}" for i in range(sources)]
    weights = [f"w{i}" for i in range(6)]
    made = list(inputs)
    unread = set(inputs)
    nodes: list[Node] = []
    reach = reach or rng.choice([1, 2, 2, 3, 4, 8])

    def add(kind: Kind, reads: list[str], outputs: list[str]) -> None:
        passes = kind is not Kind.SHAPE
        chances = [passes and (name in unread or rng.random() < 0.9) for name in reads]
        unread.difference_update(reads)
        constant = [rng.choice(weights)] if rng.random() < 0.5 else []
        nodes.append(
            Node(
                index=len(nodes),
                name=f"node{len(nodes)}",
                op=kind.value,
                kind=kind,
                inputs=(*reads, *constant),
                outputs=tuple(outputs),
                derivative=(*chances, *(passes for _ in constant)),
                smooth=tuple(outputs) if passes else (),
            )
        )
        made.extend(outputs)
        unread.update(outputs)

    for number in range(rng.randint(3, 30)):
        if rng.random() < shapes:
            add(Kind.SHAPE, [rng.choice(made[-reach:])], [f"s{number}"])
            continue
        nearby = made[-reach:]
        reads = rng.sample(nearby, min(len(nearby), rng.choice([1, 1, 2, 2, 3])))
        outputs = [f"v{number}"] + [f"u{number}"] * (rng.random() < 0.2)
        add(rng.choice(KINDS), reads, outputs)
    left = sorted(unread)
    rng.shuffle(left)
    outputs = [f"y{i}" for i in range(sinks)]
    for number, output in enumerate(outputs):
        rest = left[number::sinks] or [made[-1]]
        add(Kind.OTHER, rest, [output])
    values = {name: Value(name, "float32", (None, None, 4)) for name in made}
    constants = {name: Constant(name, "float32", (4, 4), elements=16) for name in weights}
    return Graph(tuple(nodes), {**values, **constants}, tuple(inputs), tuple(outputs), constants)


def flows(graph: Graph, start: Iterable[str], without: Collection[str] = ()) -> set[str]:
    """Values that a derivative reaches from `start` where some values are deleted."""
    found = set(start) - set(without)
    for node in graph.nodes:
        passes = zip(node.inputs, node.derivative, strict=True)
        if any(name in found and passed for name, passed in passes):
            found.update(set(node.smooth) - set(without))
    return found


def true_cuts(graph: Graph, source: str, sink: str) -> list[str]:
    """Values whose deletion leaves no path from source to sink, in topological order."""
    reached = flows(graph, [source])
    if sink not in reached:
        return []
    order = [*graph.inputs, *(name for node in graph.nodes for name in node.outputs)]
    return [v for v in order if v in reached and sink not in flows(graph, [source], [v])]


def cut_values(chain: Chain) -> list[str]:
    return [value for cut in chain.cuts for value in cut.values]


SEEDS = range(200)


def test_cuts_are_the_values_whose_deletion_disconnects() -> None:
    counts: list[int] = []
    for seed in SEEDS:
        graph = random_graph(seed)
        wanted = true_cuts(graph, "x0", "y0")
        found = find_chains(graph)
        assert [cut_values(chain) for chain in found] == ([wanted] if wanted else []), seed
        counts.append(len(wanted))
    assert sum(count > 4 for count in counts) > 20
    assert sum(count == 2 for count in counts) > 20
    assert counts.count(0) > 0


def test_stretches_are_the_nodes_on_paths_between_neighbouring_cuts() -> None:
    for seed in SEEDS:
        graph = random_graph(seed)
        for chain in find_chains(graph):
            for entry, exit_, stretch in zip(
                chain.cuts, chain.cuts[1:], chain.stretches, strict=False
            ):
                after = flows(graph, [entry.last])
                wanted = [
                    node
                    for node in graph.nodes
                    if exit_.first in flows(graph, node.smooth)
                    and any(
                        d and i in after for i, d in zip(node.inputs, node.derivative, strict=True)
                    )
                ]
                assert list(stretch) == wanted, seed


def test_values_of_one_cut_are_joined_by_cheap_nodes_only() -> None:
    for seed in SEEDS:
        graph = random_graph(seed, shapes=0)
        for chain in find_chains(graph):
            for cut in chain.cuts:
                for value in cut.values[1:]:
                    assert graph.producer[value].kind is not Kind.OTHER, seed
            for stretch in chain.stretches:
                assert any(node.kind is Kind.OTHER for node in stretch), seed


def test_chains_of_several_sources_and_sinks() -> None:
    """Each is a run of true cuts of its own ends; no cut is in two, but where one branches off."""
    many = 0
    for seed in SEEDS:
        graph = random_graph(seed, sources=3, sinks=2, reach=5)
        found = find_chains(graph)
        many += len(found) > 1
        claimed: set[str] = set()
        for chain in found:
            values = cut_values(chain)
            assert (values[0], values[-1]) == (chain.source, chain.sink), seed
            true = true_cuts(graph, chain.source, chain.sink)
            assert values == true, seed
            assert claimed.isdisjoint(values[1:]), seed
            claimed.update(values)
    assert many > 20


def freed_by_definition(graph: Graph, exit_: str, entry: str) -> set[int]:
    """What some output needed before, and none needs with the exit given and the entry wanted."""
    before = graph.needed_by(graph.outputs)
    return before - graph.needed_by([*graph.outputs, entry], frozenset({exit_}))


@pytest.mark.parametrize("shapes", [0.0, 0.25])
def test_what_a_substitution_frees_is_what_no_output_needs_any_more(shapes: float) -> None:
    sizes: list[int] = []
    for seed in SEEDS:
        graph = random_graph(seed, sources=2, sinks=2, shapes=shapes)
        rng = random.Random(seed)
        for _ in range(12):
            exit_ = rng.choice([name for node in graph.nodes for name in node.outputs])
            upstream = sorted(graph.ancestors([exit_]) - {exit_} - graph.constants.keys())
            if upstream:
                entry = rng.choice(upstream)
                wanted = freed_by_definition(graph, exit_, entry)
                assert graph.freed_by(exit_, entry) == wanted, (seed, exit_, entry)
                sizes.append(len(wanted))
    assert sum(size > 3 for size in sizes) > 100
    assert sizes.count(0) > 20


def test_a_span_removes_its_path_and_what_is_removed_is_read_by_no_one() -> None:
    spans = refusals = 0
    for seed in SEEDS:
        graph = random_graph(seed, sources=2, sinks=2)
        for chain in find_chains(graph):
            stream = anatomy(graph, chain)
            shapes = {v: [(1, 2, 4), (2, 3, 4)] for v in cut_values(chain)}
            for start in range(len(chain.stretches)):
                for stop in range(start + 1, len(chain.cuts)):
                    said = prove(graph, stream, start, stop, shapes)
                    inside = {n.index for s in chain.stretches[start:stop] for n in s}
                    gone = freed_by_definition(
                        graph, chain.cuts[stop].first, chain.cuts[start].last
                    )
                    if isinstance(said, Refusal):
                        refusals += 1
                        assert not inside <= gone, seed
                    else:
                        spans += 1
                        assert inside <= said.removed == gone, seed
                        assert_computable(graph, said)
    assert min(spans, refusals) > 100


def assert_computable(graph: Graph, span: Span) -> None:
    """With the exit made from the entry, every node that stays and is needed has its inputs."""
    made = {*graph.inputs, *graph.constants}
    stays = graph.needed_by([*graph.outputs, span.entry], frozenset({span.exit}))
    assert stays.isdisjoint(span.removed)
    for node in graph.nodes:
        if span.exit in node.outputs:
            assert span.entry in made
            made.add(span.exit)
        if node.index in stays:
            assert node.kind is Kind.SHAPE or made.issuperset(node.inputs)
            made.update(node.outputs)
    assert made.issuperset(graph.outputs)


def test_a_stream_of_a_thousand_blocks_is_one_chain() -> None:
    """Nothing in the analysis is nested as deep as the network."""
    values = ["x"]
    nodes: list[Node] = []
    for i in range(1000):
        for kind, reads, made in (
            (Kind.OTHER, (values[-1], "w"), f"b{i}"),
            (Kind.ADD, (values[-1], f"b{i}"), f"h{i}"),
        ):
            nodes.append(
                Node(len(nodes), made, kind.value, kind, reads, (made,), (True, True), (made,))
            )
        values.append(f"h{i}")
    known = {name: Value(name, "float32", (None, 4)) for node in nodes for name in node.outputs}
    known["x"] = Value("x", "float32", (None, 4))
    weight = Constant("w", "float32", (4, 4), elements=16)
    graph = Graph(tuple(nodes), known, ("x",), ("h999",), {"w": weight})
    (chain,) = find_chains(graph)
    assert [cut.values for cut in chain.cuts] == [(value,) for value in values]
    stream = anatomy(graph, chain)
    assert len(stream.blocks) == 1000
    said = prove(graph, stream, 0, 1000)
    assert isinstance(said, Span)
    assert said.removed == frozenset(range(2000))
