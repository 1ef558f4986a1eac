"""Sections: a span of a model as a model of its own, fed with what it is fed inside the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from ..calibration.runtime import Feeds, Runner
from ..ir.onnx_extract import extract
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_view import elem_type
from ..ir.spans import Span
from .surrogates import Wish
from .task import Task


@dataclass(frozen=True, eq=False)
class Section:
    """A model from the entry of a span to its exit, the span as it lies in it, and its inputs."""

    model: OnnxModel
    span: Span
    feeds: Feeds


def sections_of(task: Task, wishes: Sequence[Wish], feeds: Feeds) -> Iterator[Section]:
    """The section of each wish's span; `feeds` are of the whole model, which runs on them once."""
    pieces = [_cut_out(task.plain, wish.span) for wish in wishes]
    read = {name for piece in pieces for name in piece.graph.inputs}
    inner = sorted(read - set(task.plain.graph.inputs))
    found = {**feeds, **Runner(task.plain, task.runtime, inner)(feeds)}
    for piece, wish in zip(pieces, wishes, strict=True):
        own = {name: found[name] for name in piece.graph.inputs}
        model = _declared(piece, {name: array.ndim for name, array in own.items()}, wish.span)
        yield Section(model, _span_in(model, task.plain, wish.span), own)


def _cut_out(model: OnnxModel, span: Span) -> OnnxModel:
    """The nodes that a span's exit needs when its entry and its side inputs are at hand."""
    beside = [name for name in span.side_inputs if model.graph.value(name).dtype]
    return extract(model, [span.entry, *beside], [span.exit])


def _declared(piece: OnnxModel, ranks: Mapping[str, int], span: Span) -> OnnxModel:
    """The piece with what a model to be edited must say: how many axes its ends have."""
    proto = onnx.ModelProto()
    proto.CopyFrom(piece.proto)
    for end in (*proto.graph.input, *proto.graph.output):
        end.type.tensor_type.elem_type = elem_type(piece.graph.value(end.name).dtype or span.dtype)
        if not end.type.tensor_type.HasField("shape"):
            axes = ranks.get(end.name, span.rank)
            end.type.tensor_type.shape.dim.extend(
                onnx.TensorShapeProto.Dimension() for _ in range(axes)
            )
    return replace(piece, proto=proto)


def _span_in(section: OnnxModel, model: OnnxModel, span: Span) -> Span:
    """The span with its nodes numbered as they are in the section, those that are not left out."""
    numbers = section.graph.producer
    outputs = (name for index in span.removed for name in model.graph.nodes[index].outputs)
    removed = frozenset(numbers[name].index for name in outputs if name in numbers)
    return replace(span, removed=removed)
