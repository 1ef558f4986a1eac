"""Spans: stretches of a chain that one map from entry to exit could replace.

A Span is proved when it is made: entry and exit have one dtype and one shape, nothing inside is
read from outside. Feature maps may also change in size, by whole strides, and in channels: that is
seen on data alone. What cannot be proved is a Refusal that names the reason and the node at fault.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .blocks import Anatomy
from .channels import ObservedShapes, any_shape, channel_axis
from .graph import Graph, Kind, Node
from .windows import Window


@dataclass(frozen=True)
class Span:
    """From the value `entry` at cut `start` to the value `exit` at cut `stop` of one chain.

    Replacing it means: whoever reads `exit` reads a map of `entry` instead, and the nodes listed
    in `removed` (indices) are no longer needed by anyone. `side_inputs` are other values that flow
    into the span (encoder states, say), `dropped` outputs of the graph that go with it (caches).
    `channel_axis` is -1 for tokens, 1 for feature maps; `rank` counts all axes and `width` the
    channels of the exit, 0 where they are not known. `strides`, one per spatial axis, is empty
    where both ends have one shape; else the entry has `entry_width` channels.
    """

    stream: str
    start: int
    stop: int
    entry: str
    exit: str
    channel_axis: int
    rank: int
    dtype: str
    name: str
    blocks: float
    removed: frozenset[int]
    side_inputs: tuple[str, ...]
    width: int = 0
    strides: tuple[int, ...] = ()
    entry_width: int = 0
    dropped: tuple[str, ...] = ()

    @property
    def is_map(self) -> bool:
        """Whether it leads from feature maps to feature maps, channels on axis 1."""
        return self.channel_axis == 1 and self.rank > 2

    def window(self, kernel: int) -> Window:
        """How a convolution of that size that makes the exit's maps looks at the entry."""
        axes = self.rank - 2
        one = (1,) * axes
        return Window((kernel,) * axes, self.strides or one, (kernel // 2,) * 2 * axes, one)

    def touches(self, other: Span) -> bool:
        """Whether both share a cut: then neither can be chosen beside the other."""
        apart = self.stop < other.start or other.stop < self.start
        meet = self.exit == other.entry or other.exit == self.entry
        return meet or (self.stream == other.stream and not apart)

    def refused(self, graph: Graph, reason: str) -> Refusal:
        """The refusal of a span that was proved, for what showed later at its exit."""
        node = str(graph.producer[self.exit])
        return Refusal(self.start, self.stop, self.name, reason, node)


@dataclass(frozen=True)
class Refusal:
    """Why the stretch between two cuts cannot be replaced, and where that shows.

    `output` is the output of the graph that stands in the way, if one does.
    """

    start: int
    stop: int
    name: str
    reason: str
    node: str
    output: str = ""


def prove(
    graph: Graph,
    anatomy: Anatomy,
    start: int,
    stop: int,
    observed: ObservedShapes | None = None,
    droppable: frozenset[str] = frozenset(),
) -> Span | Refusal:
    """The span from cut `start` to cut `stop`, or why there is none.

    It ends at the exit cut's first value, so that a norm or activation that follows is kept and the
    map is fitted in front of it. It begins at the entry cut's last value of that shape, or else at
    the last value that a convolution with strides can make the exit of. `droppable` are outputs
    that may go with the span that makes them.
    """
    name = span_name(anatomy, start, stop)
    exit_ = anatomy.chain.cuts[stop].first
    maker = str(graph.producer[exit_])
    entries = tuple(reversed(anatomy.chain.cuts[start].values))
    reasons = {entry: _mismatch(graph, entry, exit_, observed) for entry in entries}
    blocks = anatomy.block_share(start, stop)
    strides = {e: _strides(graph, e, exit_, observed) if blocks else () for e in entries}
    same = (entry for entry in entries if reasons[entry] is None)
    entry = next(same, next((entry for entry in entries if strides[entry]), None))
    if entry is None:
        return Refusal(start, stop, name, str(reasons[entries[0]]), maker)
    resized: tuple[int, ...] = strides[entry] if reasons[entry] else ()
    axis = channel_axis(graph, exit_, observed)
    inside = [node for i in range(start, stop) for node in anatomy.chain.stretches[i]]
    made = [name for node in inside for name in node.outputs if name != exit_]
    dropped = tuple(name for name in made if name in droppable)
    removed = graph.freed_by(exit_, entry, frozenset(dropped))
    escape = _escape(graph, inside, removed, {exit_, *dropped})
    if escape is not None:
        node, reason, output = escape
        return Refusal(start, stop, name, reason, str(node), output)
    return Span(
        stream=anatomy.chain.source,
        start=start,
        stop=stop,
        entry=entry,
        exit=exit_,
        channel_axis=axis,
        rank=len(any_shape(graph, exit_, observed)),
        dtype=graph.value(exit_).dtype or graph.value(entry).dtype or "float32",
        name=name,
        blocks=blocks,
        removed=removed,
        side_inputs=_side_inputs(graph, anatomy, start, removed),
        width=_width(graph, exit_, axis, observed),
        strides=resized,
        entry_width=_width(graph, entry, axis, observed) if resized else 0,
        dropped=dropped,
    )


def _width(graph: Graph, name: str, axis: int, observed: ObservedShapes | None) -> int:
    dims = any_shape(graph, name, observed)
    width = dims[axis] if dims else 0
    return width if isinstance(width, int) else 0


def span_name(anatomy: Anatomy, start: int, stop: int) -> str:
    """A name for people: the blocks it covers, or the units where it covers no whole block."""
    blocks = anatomy.blocks_between(start, stop)
    if blocks and sum(block.stop - block.start for block in blocks) == stop - start:
        parts = [block.name for block in blocks]
    else:
        parts = [_unit_name(anatomy, i) for i in range(start, stop)]
    return parts[0] if len(parts) == 1 else f"{parts[0]} .. {parts[-1]}"


def _unit_name(anatomy: Anatomy, index: int) -> str:
    block = anatomy.block_of(index)
    if block is None:
        return anatomy.units[index].name
    count = block.stop - block.start
    return block.name if count == 1 else f"{block.name} ({index - block.start + 1}/{count})"


QUANTISED = frozenset({"int8", "uint8"})


def _mismatch(graph: Graph, entry: str, exit_: str, observed: ObservedShapes | None) -> str | None:
    """Why entry and exit cannot be one stream, or None where they are proved to be."""
    a, b = graph.value(entry), graph.value(exit_)
    if a.is_known_not_float or b.is_known_not_float:
        advice = "; optimize first, quantise after" if {a.dtype, b.dtype} & QUANTISED else ""
        return f"its ends hold no plain floats: {a.dtype} and {b.dtype}{advice}"
    if a.dtype and b.dtype and a.dtype != b.dtype:
        return f"its ends differ in dtype: {a.dtype} and {b.dtype}"
    if not graph.static_dims_agree(entry, exit_):
        return f"its ends differ in shape: {_pretty(a.shape)} and {_pretty(b.shape)}"
    if observed is not None:
        seen_a, seen_b = list(observed.get(entry, ())), list(observed.get(exit_, ()))
        if not seen_a or seen_a != seen_b:
            return f"its ends differ in shape on the data: {seen_a} and {seen_b}"
        if len(seen_a[0]) < 2:
            return "its ends have no channel axis"
    axis = channel_axis(graph, exit_, observed)
    if axis != channel_axis(graph, entry, observed):
        return "its ends have their channels on different axes"
    if observed is not None:
        return None
    if a.shape is None and b.shape is None and axis == 1:
        return "without data its rank is not known"
    if _keeps_shape(graph, entry, exit_):
        return None
    return "no residual sum joins its ends, and without data equal shapes are not proved"


LONGEST_STRIDE = 3
"""A 3x3 kernel of longer strides would not see all of the entry."""


def _strides(
    graph: Graph, entry: str, exit_: str, observed: ObservedShapes | None
) -> tuple[int, ...]:
    """Strides that lead from the feature maps of the entry to those of the exit, () for none.

    On all data seen, a padded kernel of odd size must make ceil(size / stride) of every size.
    """
    a, b = graph.value(entry), graph.value(exit_)
    if a.is_known_not_float or b.is_known_not_float or (a.dtype and b.dtype and a.dtype != b.dtype):
        return ()
    seen = observed or {}
    pairs = list(zip(seen.get(entry, ()), seen.get(exit_, ()), strict=True))
    if not pairs or any(len(x) != len(y) or len(x) < 3 or x[0] != y[0] for x, y in pairs):
        return ()
    if any(channel_axis(graph, name, observed) != 1 for name in (entry, exit_)):
        return ()
    if len({(x[1], y[1]) for x, y in pairs}) > 1:
        return ()
    x, y = pairs[0]
    strides = tuple(-(-m // n) for m, n in zip(x[2:], y[2:], strict=True))
    for x, y in pairs:
        sizes = tuple(-(-m // stride) for m, stride in zip(x[2:], strides, strict=True))
        if sizes != y[2:] or max(strides) > LONGEST_STRIDE:
            return ()
    return strides


KEEPING = frozenset({Kind.POINTWISE, Kind.NORM, Kind.ADD})


def _keeps_shape(graph: Graph, entry: str, exit_: str) -> bool:
    """Whether sums and operations on each number by itself alone lead from one value to another."""
    last, reached, waiting = graph.producer[exit_].index, {entry}, [entry]
    while waiting:
        for node in graph.consumers.get(waiting.pop(), ()):
            if node.index <= last and node.kind in KEEPING:
                fresh = set(node.outputs) - reached
                reached |= fresh
                waiting += fresh
    return exit_ in reached


def _escape(
    graph: Graph, inside: Sequence[Node], removed: frozenset[int], allowed: Collection[str]
) -> tuple[Node, str, str] | None:
    """A node on the span's own path that would outlive it, who reads it, and as which output.

    Outputs of the graph that are `allowed` are no reason to.
    """
    path = {node.index for node in inside}
    outlives = None
    for node in inside:
        made = [name for name in node.outputs if name in graph.given and name not in allowed]
        if made:
            return node, f"the graph output {made[0]!r} is made inside it", made[0]
        if node.index not in removed:
            outlives = outlives or node
            for name in node.outputs:
                for reader in graph.consumers.get(name, ()):
                    if reader.index not in removed | path and reader.kind is not Kind.SHAPE:
                        return node, f"{reader} outside it still reads {name!r}", ""
    return None if outlives is None else (outlives, f"{outlives} is still needed outside it", "")


def _side_inputs(
    graph: Graph, anatomy: Anatomy, start: int, removed: frozenset[int]
) -> tuple[str, ...]:
    """Input-dependent values that flow into the span beside its entry and outlive it."""
    made = {name for index in removed for name in graph.nodes[index].outputs}
    read = {name for index in removed for name in graph.nodes[index].inputs}
    beside = read - made - set(anatomy.chain.cuts[start].values)
    return tuple(sorted(beside & graph.input_dependent))


def _pretty(shape: object) -> str:
    return "unknown" if shape is None else str(shape).replace("'", "")
