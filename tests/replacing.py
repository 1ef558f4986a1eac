"""Ask the analysis about a network, and replace a span twice: by the passes and by hand."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from blockfold.calibration.solve import Solution
from blockfold.ir.blocks import Anatomy, anatomy
from blockfold.ir.cuts import Chain, find_chains
from blockfold.ir.graph import Graph
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Refusal, Span, prove
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement

from .networks import Arrays, compare, run, samples

Sizes = Sequence[tuple[int, int]]
"""Rows and lengths of the batches to run."""

SIZES: Sizes = ((1, 6), (3, 8), (2, 4))
Observed = dict[str, list[tuple[int, ...]]]


def streams(model: onnx.ModelProto) -> tuple[Graph, list[Anatomy]]:
    graph = read(model).graph
    return graph, [anatomy(graph, chain) for chain in find_chains(graph)]


def firsts(chain: Chain) -> list[str]:
    return [cut.first for cut in chain.cuts]


def ranges(stream: Anatomy) -> list[tuple[str, str]]:
    """The blocks, each by the first values of the cuts at its ends."""
    names = firsts(stream.chain)
    return [(names[block.start], names[block.stop]) for block in stream.blocks]


def observed(model: onnx.ModelProto, sizes: Sizes = SIZES) -> Observed:
    """The shapes that all cut values take on batches of several sizes."""
    _, found = streams(model)
    names = {value for stream in found for cut in stream.chain.cuts for value in cut.values}
    outputs = {value.name for value in model.graph.output}
    seen: Observed = {name: [] for name in names}
    for rows, length in sizes:
        feeds = samples(model, rows, length=length)
        values = {**feeds, **run(model, feeds, sorted(names - feeds.keys() - outputs))}
        for name in names:
            seen[name].append(values[name].shape)
    return seen


def asked(
    model: onnx.ModelProto, entry: str, exit_: str, *, data: bool = False, sizes: Sizes = SIZES
) -> Span | Refusal:
    """What the analysis says of the stretch between two cuts, named by their first values."""
    graph, found = streams(model)
    (stream,) = (s for s in found if {entry, exit_} <= set(firsts(s.chain)))
    names = firsts(stream.chain)
    seen = observed(model, sizes) if data else None
    return prove(graph, stream, names.index(entry), names.index(exit_), seen)


def refused(
    model: onnx.ModelProto, entry: str, exit_: str, *, data: bool = False, sizes: Sizes = SIZES
) -> Refusal:
    said = asked(model, entry, exit_, data=data, sizes=sizes)
    assert isinstance(said, Refusal), f"offered: {said}"
    return said


def replaced(
    model: onnx.ModelProto, entry: str, exit_: str, *, data: bool = False, sizes: Sizes = SIZES[:2]
) -> Span:
    """The span between two cuts, after it was replaced by the identity and by a random map.

    Asserts for both that the result computes what the same network computes whose exit is made by
    hand, at every size; that what the span promises to remove is gone, with all weights that only
    it read; and that the map is seen at some output.
    """
    span = asked(model, entry, exit_, data=data, sizes=sizes)
    assert isinstance(span, Span), f"refused: {span}"
    graph = read(model).graph
    gone = {name for index in span.removed for name in graph.nodes[index].outputs} - {span.exit}
    for solution in (None, random_map(width(model, span, sizes[0]))):
        replacement = Replacement(span, solution, 0.25)
        made = rewrite(read(model), [replacement], {}, ALL_PASSES).model.proto
        onnx.checker.check_model(made, full_check=True)
        other = by_hand(model, span, solution)
        seen = False
        for rows, length in sizes:
            feeds = samples(model, rows, length=length)
            wanted, found = run(other, feeds), run(made, feeds)
            compare(wanted, found, atol=0, rtol=tolerance(model))
            seen = seen or differ(run(model, feeds), wanted)
        assert seen, "no output sees the replacement: the comparison shows nothing"
        assert gone.isdisjoint(name for node in made.graph.node for name in node.output)
        assert unread(made) == set()
    return span


def width(model: onnx.ModelProto, span: Span, size: tuple[int, int]) -> int:
    feeds = samples(model, size[0], length=size[1])
    taps = [span.exit] if span.exit not in {value.name for value in model.graph.output} else []
    return int(run(model, feeds, taps)[span.exit].shape[span.channel_axis])


@cache
def random_map(d: int) -> Solution:
    rng = np.random.default_rng(d)
    W = rng.standard_normal((d, d)) / np.sqrt(d)
    return Solution(W, rng.standard_normal(d), ridge=0.0, rows=100, rank=d, condition=1.0)


def by_hand(model: onnx.ModelProto, span: Span, solution: Solution | None) -> onnx.ModelProto:
    """The model with its exit made from the entry beside its old maker; nothing is taken away.

    Channels are brought to the last axis, multiplied and brought back, whatever their place.
    """
    other = onnx.ModelProto()
    other.CopyFrom(model)
    prefix = f"by hand/{span.exit}"
    (at,) = (i for i, node in enumerate(other.graph.node) if span.exit in node.output)
    maker = other.graph.node[at]
    maker.output[list(maker.output).index(span.exit)] = f"{prefix}/old"
    nodes = [helper.make_node("Identity", [span.entry], [span.exit])]
    if solution is not None:
        turn = list(range(span.rank))
        turn[span.channel_axis], turn[-1] = turn[-1], turn[span.channel_axis]
        kind = np.dtype(span.dtype)
        for role, array in (("W", solution.W), ("b", solution.b)):
            tensor = numpy_helper.from_array(array.astype(kind), f"{prefix}/{role}")
            other.graph.initializer.append(tensor)
        turned, product, total = (f"{prefix}/{step}" for step in ("turned", "product", "sum"))
        nodes = [
            helper.make_node("Transpose", [span.entry], [turned], perm=turn),
            helper.make_node("MatMul", [turned, f"{prefix}/W"], [product]),
            helper.make_node("Add", [product, f"{prefix}/b"], [total]),
            helper.make_node("Transpose", [total], [span.exit], perm=turn),
        ]
    for node in reversed(nodes):
        other.graph.node.insert(at + 1, node)
    return other


def tolerance(model: onnx.ModelProto) -> float:
    """What two ways of computing the same may differ by, relative to the largest number."""
    narrow = any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer)
    return 3e-3 if narrow else 2e-5


def differ(a: Arrays, b: Arrays) -> bool:
    """Whether a difference shows that no rounding can explain."""
    try:
        compare(a, b, atol=0, rtol=0.01)
    except AssertionError:
        return True
    return False


def unread(model: onnx.ModelProto) -> set[str]:
    """Weights that nothing reads."""
    read_by = {name for node in read(model).graph.nodes for name in node.inputs}
    kept = read_by | {value.name for value in (*model.graph.output, *model.graph.input)}
    return {tensor.name for tensor in model.graph.initializer} - kept


def captures(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The node and all nodes of its bodies."""
    yield node
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from captures(inner)


def reordered(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph with its nodes in another topological order, drawn at random."""
    rng = random.Random(seed)
    graph = read(model).graph
    maker = {name: node.index for node in graph.nodes for name in node.outputs}
    waits = {node.index: {maker[i] for i in node.inputs if i in maker} for node in graph.nodes}
    after: dict[int, list[int]] = {}
    for index, makers in waits.items():
        for before in makers:
            after.setdefault(before, []).append(index)
    ready = [(rng.random(), index) for index, makers in waits.items() if not makers]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)[1]
        order.append(index)
        for reader in after.get(index, ()):
            waits[reader].discard(index)
            if not waits[reader]:
                heapq.heappush(ready, (rng.random(), reader))
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.node[:]
    other.graph.node.extend(model.graph.node[index] for index in order)
    return other


def renamed(model: onnx.ModelProto, seed: int) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """The same graph with random names for all values and no node names; and the old names."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    graph = other.graph
    names = {o for node in graph.node for o in node.output if o}
    names |= {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    names |= {tensor.name for tensor in graph.initializer}
    numbers = list(range(len(names)))
    random.Random(seed).shuffle(numbers)
    new = {name: f"n{number:04}" for name, number in zip(sorted(names), numbers, strict=True)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new[value.name]
    for tensor in graph.initializer:
        tensor.name = new[tensor.name]
    for node in graph.node:
        for inner in captures(node):
            inner.input[:] = [new.get(name, name) for name in inner.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    return other, {made: name for name, made in new.items()}


def summary(model: onnx.ModelProto, old: Mapping[str, str] | None = None) -> list[object]:
    """All that the analysis says of a network but names of blocks and numbers of nodes."""

    def say(names: Iterable[str]) -> tuple[str, ...]:
        return tuple((old or {}).get(name, name) for name in names)

    graph, found = streams(model)
    said: list[object] = []
    for stream in found:
        chain, units = stream.chain, stream.units
        said.append(say((chain.source, chain.sink)))
        said += [say(cut.values) for cut in chain.cuts]
        said += [frozenset(say(name for n in u.nodes for name in n.outputs)) for u in units]
        said += [(block.start, block.stop) for block in stream.blocks]
        for start, stop in combinations(range(len(units) + 1), 2):
            span = prove(graph, stream, start, stop)
            if isinstance(span, Span):
                gone = (name for i in span.removed for name in graph.nodes[i].outputs)
                said += [start, stop, say((span.entry, span.exit)), frozenset(say(gone))]
                said += [frozenset(say(span.side_inputs)), span.channel_axis, span.blocks]
    return said


def assert_named_and_ordered_at_will(model: onnx.ModelProto, seeds: int = 4) -> None:
    """Other names and another topological order change no answer."""
    said = summary(model)
    for seed in range(seeds):
        assert summary(reordered(model, seed)) == said, f"another order, seed {seed}"
        assert summary(*renamed(model, seed)) == said, f"other names, seed {seed}"
