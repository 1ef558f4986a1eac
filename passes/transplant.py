"""Transplant: the replacements that were solved on a module's ONNX export, made in the module.

Streams and cuts of both graphs are matched by their order and by what they hold on data, never by
names: at every place that is touched both must compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from ..calibration.moments import Array
from ..calibration.runtime import Runner, Runtime
from ..ir.blocks import Anatomy, anatomy
from ..ir.cuts import Cut, find_chains
from ..ir.errors import Unsupported
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import matrix, offset
from ..ir.spans import Span
from ..ir.torch_door import TorchDoor
from ..ir.torch_linear import TorchLinear, linear_into
from ..ir.torch_module import CompressedModule
from ..ir.torch_view import view
from .replacement import Replacement
from .surrogates import kernel_size
from .torch_maps import MapWithContext, ResidualWithContext, convolution, linear


@dataclass(frozen=True)
class Export:
    """The ONNX export of a module, as it is analysed, its streams, and what runs it."""

    model: OnnxModel
    streams: Sequence[Anatomy]
    runtime: Runtime


TOLERANCE = 1e-3
"""How far two front ends may be apart, as a share of the largest number: both round in float32."""

Feeds = Mapping[str, np.ndarray]


def transplant(
    program: ExportedProgram,
    export: Export,
    replacements: Sequence[Replacement],
    feeds: Feeds | None,
) -> CompressedModule:
    """A copy of the captured module with the replacements made.

    `feeds` are a batch of inputs to compare the two graphs on; None where they differ in type.
    Raises Unsupported where they cannot be matched.
    """
    graph = view(program)
    captured = [anatomy(graph, chain) for chain in find_chains(graph)]
    door = TorchDoor(program)
    inputs = dict(zip(export.model.graph.inputs, door.inputs, strict=False))
    same = None if feeds is None else _Comparison(door, export, captured, feeds, replacements)
    cuts = _matched(export.streams, captured, same)
    sites = [_Site.of(door, cuts, replacement, same) for replacement in replacements]
    order = {node: at for at, node in enumerate(door.graph.nodes)}
    for site in sorted(sites, key=lambda site: order[site.exit]):
        mask = inputs[site.replacement.mask] if site.replacement.mask else None
        site.make(door, export.model, mask)
    return door.close()


def places(
    program: ExportedProgram, export: Export, wanted: Collection[str], feeds: Feeds
) -> tuple[TorchDoor, dict[str, fx.Node]]:
    """The captured module, and for every wanted value at a cut of its export the node like it.

    `feeds` are a batch of inputs to compare the two on. Raises Unsupported where one has no node
    of its shape and numbers.
    """
    door = TorchDoor(program)
    graph = view(program)
    captured = [anatomy(graph, chain) for chain in find_chains(graph)]
    same = _Comparison(door, export, captured, feeds, ())
    cuts = _matched(export.streams, captured, same)
    found: dict[str, fx.Node] = {}
    for stream in export.streams:
        for at, cut in enumerate(stream.chain.cuts):
            for value in set(wanted).intersection(cut.values) - found.keys():
                ours = cuts.get((stream.chain.source, at))
                name = _like(() if ours is None else ours.values, value, same)
                if not same.has_one_shape(name, value):
                    raise _no_place(name, value)
                found[value] = door.node(name)
    return door, found


class _Comparison:
    """What both graphs compute on one batch, at all their cuts and at what is folded."""

    def __init__(
        self,
        door: TorchDoor,
        export: Export,
        captured: Sequence[Anatomy],
        feeds: Feeds,
        replacements: Sequence[Replacement],
    ) -> None:
        taps = [v for stream in export.streams for cut in stream.chain.cuts for v in cut.values]
        taps += [n for r in replacements if r.linear for n in (r.linear.u, r.linear.residual)]
        runner = Runner(export.model, export.runtime, list(dict.fromkeys(taps)))
        self._theirs = runner(feeds)
        values = [v for stream in captured for cut in stream.chain.cuts for v in cut.values]
        given = dict(zip(export.model.graph.inputs, door.inputs, strict=False))
        known = {door.node(name) for name in values if door.has(name)}
        totals = [linear_into(node) for node in known]
        known |= {n for linear in totals if linear for n in (linear.u, linear.residual)}
        found = door.values(known, {given[name]: array for name, array in feeds.items()})
        self._ours = {node.name: numbers for node, numbers in found.items()}

    def __call__(self, ours: str, theirs: str) -> bool:
        """Whether two values hold the same numbers, layouts of equal size apart."""
        if ours not in self._ours or theirs not in self._theirs:
            return False
        a, b = self._ours[ours], self._theirs[theirs].astype(np.float64)
        if a.size != b.size:
            return False
        size = max(float(np.abs(b).max(initial=0.0)), 1e-30)
        return float(np.abs(a - b.reshape(a.shape)).max(initial=0.0)) <= TOLERANCE * size

    def has_one_shape(self, ours: str, theirs: str) -> bool:
        return self._ours[ours].shape == self._theirs[theirs].shape


Cuts = Mapping[tuple[str, int], Cut]
"""Cuts of the captured module, by the stream and place they have in the ONNX model."""


def _matched(
    streams: Sequence[Anatomy], captured: Sequence[Anatomy], same: _Comparison | None
) -> Cuts:
    """Cuts matched in order, those that hold the same numbers where these are known."""
    found: dict[tuple[str, int], Cut] = {}
    for theirs, ours in zip(streams, captured, strict=False):
        a, b = theirs.chain.cuts, ours.chain.cuts
        if same is not None:
            pairs = _aligned(a, b, same)
        elif len(a) == len(b):
            pairs = [(at, at) for at in range(len(a))]
        else:
            pairs = []
        found |= {(theirs.chain.source, at): b[place] for at, place in pairs}
    return found


def _aligned(a: Sequence[Cut], b: Sequence[Cut], same: _Comparison) -> list[tuple[int, int]]:
    """The longest common subsequence of two rows of cuts, as pairs of places."""
    is_same = [[any(same(y, x) for y in q.values for x in p.values) for q in b] for p in a]
    longest = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            longest[i, j] = max(longest[i + 1, j], longest[i, j + 1])
            if is_same[i][j]:
                longest[i, j] = max(longest[i, j], 1 + longest[i + 1, j + 1])
    pairs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if is_same[i][j] and longest[i, j] == 1 + longest[i + 1, j + 1]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1, j] >= longest[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


@dataclass(frozen=True)
class _Site:
    """Where a replacement goes: the fx nodes of its ends, as they were captured."""

    replacement: Replacement
    exit: fx.Node
    entry: fx.Node
    linear: TorchLinear | None

    @classmethod
    def of(
        cls, door: TorchDoor, cuts: Cuts, replacement: Replacement, same: _Comparison | None
    ) -> _Site:
        """Raises Unsupported where the captured module has no such place."""
        span, folded = replacement.span, replacement.linear
        begin, end = cuts.get((span.stream, span.start)), cuts.get((span.stream, span.stop))
        if begin is None or end is None:
            raise _no_place(span.name, span.exit)
        exit_ = _like(end.values, span.exit, same)
        if folded is None:
            entry = _like(tuple(reversed(begin.values)), span.entry, same)
            return cls(replacement, door.node(exit_), door.node(entry), None)
        total = door.node(_like(begin.values, folded.value, same))
        linear = linear_into(total)
        if linear is None or (
            same is not None
            and not (same(linear.u.name, folded.u) and same(linear.residual.name, folded.residual))
        ):
            raise _no_place(span.name, folded.value)
        return cls(replacement, door.node(exit_), total, linear)

    def make(self, door: TorchDoor, model: OnnxModel, mask: fx.Node | None) -> None:
        """Put the surrogate in place of what makes the exit."""
        made, span = self.replacement, self.replacement.span
        name = "".join(c if c.isalnum() else "_" for c in span.name).strip("_") or "map"
        marks = () if mask is None else (mask,)
        if made.solution is None:
            door.put(self.exit, name, None, [door.node(self.entry.name)])
            return
        W, b = made.solution.W, made.solution.b
        like = door.some_parameter()
        d = len(b)
        if self.linear is None:
            entry = door.node(self.entry.name)
            if made.form != "affine + context":
                door.put(self.exit, name, _map(span, W, b, like, kernel_size(made.form)), [entry])
                return
            map_, context = _map(span, W[:d], None, like), _map(span, W[d:], b, like)
            door.put(self.exit, name, MapWithContext(map_, context, span.is_map), [entry, *marks])
            return
        linear = linear_into(door.node(self.linear.total.name))
        linear = linear or self.linear
        self._fold(door, model, linear, name, marks)

    def _fold(
        self,
        door: TorchDoor,
        model: OnnxModel,
        linear: TorchLinear,
        name: str,
        marks: tuple[fx.Node, ...],
    ) -> None:
        made, span = self.replacement, self.replacement.span
        assert made.solution is not None
        assert made.linear is not None
        W, b = made.solution.W, made.solution.b
        d, like = len(b), door.some_parameter()
        residual, U = linear.residual, W
        if made.form.startswith("affine + folded"):
            map_ = _map(span, W[:d], None, like)
            given = [residual]
            U = W[d:]
            if made.form == "affine + folded + context":
                U, V = W[d:-d], W[-d:]
                through = matrix(model, made.linear) @ V
                b = b + offset(model, made.linear, d) @ V
                map_ = ResidualWithContext(
                    map_,
                    _map(span, V, None, like),
                    _map(span, through, None, like),
                    span.is_map,
                )
                given = [residual, linear.u, *marks]
            residual = door.call(self.exit, name, map_, given)
        weight = linear.as_weight(torch.from_numpy(np.ascontiguousarray(U)))
        door.put_linear(self.exit, linear, weight, torch.from_numpy(b.copy()), residual)


def _map(
    span: Span, W: Array, b: Array | None, like: torch.Tensor, size: int = 1
) -> torch.nn.Module:
    if span.is_map:
        return convolution(W, b, like, size, span.rank - 2, span.strides)
    return linear(W, b, like)


def _like(values: Sequence[str], theirs: str, same: _Comparison | None) -> str:
    """The first value of a cut that holds the numbers of a value of the ONNX model."""
    found = [name for name in values if same is None or same(name, theirs)]
    if not found:
        raise _no_place(values[0] if values else theirs, theirs)
    return found[0]


def _no_place(name: str, theirs: str) -> Unsupported:
    return Unsupported(
        f"{name!r}: the captured module and its ONNX export do not agree on {theirs!r} there; "
        "give the ONNX file"
    )
