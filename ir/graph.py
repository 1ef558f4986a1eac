"""The dataflow view: values and nodes of a graph, read-only, the same for every front end.

Nothing here knows ONNX or torch. A front end fills a Graph; cuts, blocks and spans are found on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from heapq import heappop, heappush

Dim = int | str | None
Shape = tuple[Dim, ...]

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class Value:
    """A tensor that flows: its name, dtype by NumPy name, and shape where the file states one.

    A dimension is a number, a symbolic name (which proves nothing), or None. `shape` is None where
    not even the rank is known, `dtype` is None where the file does not say.
    """

    name: str
    dtype: str | None = None
    shape: Shape | None = None

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def is_known_not_float(self) -> bool:
        return self.dtype is not None and self.dtype not in FLOATS


@dataclass(frozen=True)
class Constant(Value):
    """A weight or literal stored in the file; `elements` is its count, `size_bytes` its storage."""

    elements: int = 0
    size_bytes: int = 0


class Kind(Enum):
    """What a node does to a value, as far as the analysis needs to know."""

    VIEW = "view"  # the same numbers in another shape or dtype
    PERMUTE = "permute"  # the same numbers with the axes in another order
    POINTWISE = "pointwise"  # one number in, one out, at the same place
    NORM = "norm"  # rescales a row by its own statistics
    REDUCE = "reduce"  # folds an axis away or to one
    ADD = "add"  # a sum of two values
    LOOKUP = "lookup"  # picks rows of its first input by the index in its second
    SHAPE = "shape"  # reads only the dimensions of its input
    OTHER = "other"


MOST_NAMES = 2_000_000
"""Arithmetic on n constants in a row would hold n^2 / 2 of their names."""

JOINING = frozenset({Kind.VIEW, Kind.PERMUTE, Kind.POINTWISE, Kind.NORM, Kind.ADD})
"""Kinds cheap enough that the values before and after them are one place in the stream."""


@dataclass(frozen=True)
class Node:
    """An operation. `inputs` holds "" for an absent one; values captured by a body come last.

    `derivative[i]` says whether a derivative can pass from `inputs[i]` to the outputs listed in
    `smooth`; indices, shapes, conditions and comparisons let none through. `channel_axis` is the
    axis on which the operation expects the channels of its first input, where it has a say.
    `permutation`, of an operation that only orders axes anew: output axis i is input axis
    `permutation[i]`.
    """

    index: int
    name: str
    op: str
    kind: Kind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    derivative: tuple[bool, ...]
    smooth: tuple[str, ...]
    channel_axis: int | None = None
    permutation: tuple[int, ...] | None = None
    scope: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op} node {self.name!r}" if self.name else f"{self.op} node #{self.index}"


@dataclass(frozen=True, eq=False)
class Graph:
    """A dataflow graph, nodes in topological order. Compared by identity; never changed."""

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]

    @cached_property
    def producer(self) -> Mapping[str, Node]:
        """The node that makes each value; inputs and constants have none."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value, in topological order, each once."""
        return _readers((name, node) for node in self.nodes for name in node.inputs if name)

    @cached_property
    def differentiating(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes through which a derivative flows on from each value, as of `consumers`."""
        return _readers(
            (name, node)
            for node in self.nodes
            for name, passes in zip(node.inputs, node.derivative, strict=True)
            if name and passes
        )

    def value(self, name: str) -> Value:
        return self.values.get(name) or Value(name)

    def static_dims_agree(self, first: str, second: str) -> bool:
        """False where ranks or stated numbers differ; symbolic names prove nothing either way."""
        a, b = self.value(first).shape, self.value(second).shape
        if a is None or b is None:
            return True
        return len(a) == len(b) and all(
            x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)
        )

    @cached_property
    def input_dependent(self) -> frozenset[str]:
        """Values that change with the VALUE of some graph input, not only with its shape."""
        found = {name for name in self.inputs if name not in self.constants}
        for node in self.nodes:
            if node.kind is not Kind.SHAPE and not found.isdisjoint(node.inputs):
                found.update(name for name in node.outputs if name)
        return frozenset(found)

    def descendants(self, sources: Iterable[str]) -> set[str]:
        """Values that a derivative reaches from any of `sources`, these included."""
        found = set(sources)
        for node in self.nodes:
            if any(d and i in found for i, d in zip(node.inputs, node.derivative, strict=True)):
                found.update(node.smooth)
        return found

    def ancestors(self, sinks: Iterable[str]) -> set[str]:
        """Values whose derivative reaches any of `sinks`, these included."""
        found = set(sinks)
        for node in reversed(self.nodes):
            if not found.isdisjoint(node.smooth):
                found.update(
                    i for i, d in zip(node.inputs, node.derivative, strict=True) if d and i
                )
        return found

    def needed_by(
        self, names: Iterable[str], given: frozenset[str] = frozenset(), *, lengths: bool = False
    ) -> set[int]:
        """Indices of the nodes that must run to compute `names` when `given` are at hand.

        What only a Shape or Size still asks for is not needed: a length is no reason to compute
        the numbers. With `lengths` it is: then these nodes can run as they are.
        """
        wanted = set(names) - given
        found: set[int] = set()
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.outputs):
                found.add(node.index)
                if lengths or node.kind is not Kind.SHAPE:
                    wanted.update(name for name in node.inputs if name and name not in given)
        return found

    @cached_property
    def given(self) -> frozenset[str]:
        """The outputs as a set."""
        return frozenset(self.outputs)

    @cached_property
    def needed(self) -> frozenset[int]:
        """Indices of the nodes that some output needs."""
        return frozenset(self.needed_by(self.outputs))

    def freed_by(
        self, exit_: str, entry: str, dropped: frozenset[str] = frozenset()
    ) -> frozenset[int]:
        """Indices of the nodes that no output needs any more once `exit_` is made from `entry`.

        Outputs that are `dropped` count no more.
        """
        given = self.given - dropped
        freed: set[int] = set()

        def is_read(name: str) -> bool:
            return name in given or any(
                reader.index in self.needed
                and reader.index not in freed
                and reader.kind is not Kind.SHAPE
                for reader in self.consumers.get(name, ())
            )

        waiting = [-self.producer[exit_].index]  # the latest first: readers come before makers
        while waiting:
            node = self.nodes[-heappop(waiting)]
            made = [name for name in node.outputs if name and name != exit_]
            if node.index in freed or node.index not in self.needed:
                continue
            if entry not in made and not any(map(is_read, made)):
                freed.add(node.index)
                for name in node.inputs:
                    if name in self.producer:
                        heappush(waiting, -self.producer[name].index)
        return frozenset(freed)

    @cached_property
    def constants_of(self) -> Mapping[int, frozenset[str]]:
        """Per node index, the constants it reads, directly or through input-free arithmetic.

        Experts count too: matrices of a stack of them, picked by an index that depends on an input.
        Names are held at most MOST_NAMES times in all: what folds still more is no weight.
        """
        behind: dict[str, frozenset[str]] = {name: frozenset({name}) for name in self.constants}
        found: dict[int, frozenset[str]] = {}
        held = 0
        for node in self.nodes:
            used = frozenset[str]().union(*(behind.get(name, frozenset()) for name in node.inputs))
            found[node.index] = used
            held += len(used)
            if held > MOST_NAMES:
                used = frozenset()
            first = node.inputs[0] if node.inputs else ""
            picked = node.kind is Kind.LOOKUP and self._is_stack(first)
            carried = node.kind in (Kind.VIEW, Kind.PERMUTE) and first in behind
            for name in node.outputs:
                if picked or carried or name not in self.input_dependent:
                    behind.setdefault(name, used)
        return found

    def _is_stack(self, name: str) -> bool:
        return name in self.constants and len(self.constants[name].shape or ()) > 2

    def parameters(self, nodes: Iterable[int]) -> int:
        """Elements of all constants that `nodes` read, each constant counted once."""
        names = frozenset[str]().union(*(self.constants_of[index] for index in nodes))
        return sum(self.constants[name].elements for name in names)

    @property
    def parameters_stored(self) -> int:
        """Elements of all constants, whoever reads them."""
        return sum(constant.elements for constant in self.constants.values())


def _readers(pairs: Iterable[tuple[str, Node]]) -> Mapping[str, tuple[Node, ...]]:
    """Per value its nodes, each once."""
    found: dict[str, dict[int, Node]] = {}
    for name, node in pairs:
        found.setdefault(name, {})[node.index] = node
    return {name: tuple(nodes.values()) for name, nodes in found.items()}
