"""Units and blocks: how a chain of cuts repeats itself.

A unit is what stands between two neighbouring cuts: an attention half, an MLP half, a residual
basic block. A block is the shortest run of units that repeats along the chain.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from math import prod

from .cuts import Chain, closes_a_residual
from .graph import Constant, Graph, Kind, Node


@dataclass(frozen=True)
class Unit:
    """The stretch from cut `start` to cut `start + 1`; `parameters` counts its weights."""

    start: int
    nodes: tuple[Node, ...]
    name: str
    parameters: int

    @property
    def stop(self) -> int:
        return self.start + 1


@dataclass(frozen=True)
class Block:
    """The units from cut `start` to cut `stop`."""

    start: int
    stop: int
    name: str


@dataclass(frozen=True)
class Anatomy:
    """A chain with its units and blocks, both in order."""

    chain: Chain
    units: tuple[Unit, ...]
    blocks: tuple[Block, ...]

    def block_share(self, start: int, stop: int) -> float:
        """How many blocks lie between two cuts, a unit counting as its share of parameters."""
        return self._shares[stop] - self._shares[start]

    def blocks_between(self, start: int, stop: int) -> tuple[Block, ...]:
        """The blocks that lie between two cuts as a whole."""
        first = bisect_left(self.blocks, start, key=lambda block: block.start)
        last = bisect_right(self.blocks, stop, key=lambda block: block.stop)
        return self.blocks[first:last]

    def block_of(self, unit: int) -> Block | None:
        """The block that a unit is part of, if any."""
        at = bisect_right(self.blocks, unit, key=lambda block: block.start) - 1
        return self.blocks[at] if at >= 0 and unit < self.blocks[at].stop else None

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        """Per cut, how many blocks lie before it."""
        shares = [0.0] * len(self.units)
        for block in self.blocks:
            sizes = [max(1, unit.parameters) for unit in self.units[block.start : block.stop]]
            shares[block.start : block.stop] = [size / sum(sizes) for size in sizes]
        return (0.0, *accumulate(shares))


def anatomy(graph: Graph, chain: Chain) -> Anatomy:
    """Name and measure the units of a chain and find its blocks."""
    scopes = [_scope(nodes) for nodes in chain.stretches]
    units = tuple(
        Unit(
            start=i,
            nodes=nodes,
            name=".".join(scope) or f"unit {i}",
            parameters=graph.parameters(node.index for node in nodes),
        )
        for i, (nodes, scope) in enumerate(zip(chain.stretches, scopes, strict=True))
    )
    ranges = _block_ranges(graph, chain)
    names = _distinct([_common_start([s for s in scopes[a:b] if s]) for a, b in ranges])
    names = [
        name if name and names.count(name) == 1 else f"block {number}"
        for number, name in enumerate(names)
    ]
    blocks = tuple(Block(a, b, name) for (a, b), name in zip(ranges, names, strict=True))
    return Anatomy(chain, units, blocks)


def _block_ranges(graph: Graph, chain: Chain) -> list[tuple[int, int]]:
    """Repeating runs within stages of one width, and lone units with weights and a residual sum."""
    ranges: list[tuple[int, int]] = []
    cuts = chain.cuts
    keeps_width = [
        graph.static_dims_agree(cuts[i].last, cuts[i + 1].first)
        for i in range(len(chain.stretches))
    ]
    for same, group in groupby(range(len(chain.stretches)), key=keeps_width.__getitem__):
        stage = list(group)
        nodes = [chain.stretches[i] for i in stage]
        signatures, sizes = [_signature(graph, n) for n in nodes], [_size(graph, n) for n in nodes]
        found = _repeats(signatures, sizes) if same else []
        ranges += [(stage[0] + start, stage[0] + stop) for start, stop in found]
    covered = {i for start, stop in ranges for i in range(start, stop)}
    ranges += [
        (i, i + 1)
        for i, nodes in enumerate(chain.stretches)
        if i not in covered and _matrices(graph, nodes) and closes_a_residual(cuts[i].values, nodes)
    ]
    return sorted(ranges)


def _repeats(signatures: Sequence[Hashable], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of the repeats of the period that covers most of the sequence, the shortest such.

    Beside a run of repeats as many units of the same size are one more: optimisers may leave the
    first layer as it was while they merge the matrices of all others.
    """
    best: list[tuple[int, int]] = []
    for period in range(1, len(signatures) // 2 + 1):
        best = max(best, _runs(signatures, period, 0), key=_covered)
        if _covered(best) == len(signatures):
            return best
    if not best:
        return best
    first, stop = best[0]
    runs = [_runs(signatures, stop - first, start) for start in range(first, stop)]
    return max((_grown(run, sizes) for run in runs), key=_covered)


def _covered(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)


def _runs(signatures: Sequence[Hashable], period: int, start: int) -> list[tuple[int, int]]:
    """Ranges of the repeats of one period, sought from `start` on."""
    ranges: list[tuple[int, int]] = []
    while start + period < len(signatures):
        stop = start
        while stop + period < len(signatures) and signatures[stop] == signatures[stop + period]:
            stop += 1
        repeats = (stop - start) // period + 1
        if repeats >= 2:
            ranges += [(start + k * period, start + (k + 1) * period) for k in range(repeats)]
        start = start + repeats * period if repeats >= 2 else start + 1
    return ranges


def _grown(ranges: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges and those beside them that are as long, free, and of the same size."""
    found = set(ranges)
    taken = {i for start, stop in ranges for i in range(start, stop)}
    for start, stop in ranges:
        size, period = sum(sizes[start:stop]), stop - start
        for beside in (start - period, stop):
            units = range(beside, beside + period)
            is_free = beside >= 0 and units.stop <= len(sizes) and taken.isdisjoint(units)
            if is_free and size and sum(sizes[i] for i in units) == size:
                found.add((beside, units.stop))
                taken.update(units)
    return sorted(found)


def _signature(graph: Graph, nodes: Sequence[Node]) -> tuple[Hashable, ...]:
    """What makes two units alike: the shapes of their matrices and how often axes change places.

    Norms, masks and positions are spelled in many ways, sometimes differently from layer to layer
    of one network; its matrices are not. Units without any are told apart by their operations.
    """
    matrices = sorted(_matrices(graph, nodes))
    turns = sum(node.kind is Kind.PERMUTE for node in nodes)
    return (turns, *map(tuple, matrices)) if matrices else tuple(sorted(node.op for node in nodes))


def _size(graph: Graph, nodes: Sequence[Node]) -> int:
    """Elements of the unit's matrices."""
    return sum(prod(dims) for dims in _matrices(graph, nodes))


def _matrices(graph: Graph, nodes: Sequence[Node]) -> list[list[int]]:
    """Dimensions of the constants that have at least two, as often as they are read."""
    read = [graph.constants_of[node.index] for node in nodes if node.kind is Kind.OTHER]
    dims = [_wide_dims(graph.constants[name]) for names in read for name in names]
    return [d for d in dims if len(d) >= 2]


def _wide_dims(constant: Constant) -> list[int]:
    """Sizes of the axes longer than one, in no particular order: exporters transpose at will."""
    return sorted(d for d in constant.shape or () if isinstance(d, int) and d > 1)


def _scope(nodes: Sequence[Node]) -> list[str]:
    """The innermost module that holds all `nodes`, as the parts of its dotted path."""
    return _common_start([_dotted(node.scope) for node in nodes if node.scope])


def _distinct(paths: Sequence[Sequence[str]]) -> list[str]:
    """Dotted names without the last parts that all of them share ("block.0.layer")."""
    shortened = [list(path) for path in paths]
    while shortened and all(len(path) > 1 for path in shortened):
        parents = {tuple(path[:-1]) for path in shortened}
        if len({path[-1] for path in shortened}) > 1 or len(parents) < len(shortened):
            break
        shortened = [path[:-1] for path in shortened]
    return [".".join(path) for path in shortened]


def _dotted(scope: Sequence[str]) -> list[str]:
    """Exporters repeat the path in every part ("layer1", "layer1.0"): the last part has it all."""
    path: list[str] = []
    for part in scope:
        pieces = part.split(".")
        path = pieces if pieces[: len(path)] == path else path + pieces
    return path


def _common_start(paths: Sequence[Sequence[str]]) -> list[str]:
    """The parts that all paths begin with; empty for no paths."""
    start = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        start.append(parts[0])
    return start
