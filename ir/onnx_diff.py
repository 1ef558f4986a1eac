"""What differs between two ONNX models, record by record, as bytes.

This is the check behind "everything outside the delta is untouched": each node, initializer, value,
piece of metadata and remaining field is one record, compared in its serialized form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx


@dataclass(frozen=True)
class Diff:
    """Labels of records, e.g. ("node", "x", "y") by outputs, ("initializer", "w"), ("input", "x").

    `reordered` holds the kinds whose common records stand in another order.
    """

    removed: tuple[tuple[str, ...], ...]
    added: tuple[tuple[str, ...], ...]
    changed: tuple[tuple[str, ...], ...]
    reordered: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.removed or self.added or self.changed or self.reordered)

    def kinds(self) -> frozenset[str]:
        """The kinds of record that differ in any way."""
        records = (*self.removed, *self.added, *self.changed)
        return frozenset(label[0] for label in records) | frozenset(self.reordered)


def diff(before: onnx.ModelProto, after: onnx.ModelProto) -> Diff:
    """Compare two models. Two serializations of equal content differ in nothing."""
    old, new = _labelled(before), _labelled(after)
    common = [label for label in old if label in new]
    order = [label for label in new if label in old]
    kinds = dict.fromkeys(label[0] for label in common)
    return Diff(
        removed=tuple(label for label in old if label not in new),
        added=tuple(label for label in new if label not in old),
        changed=tuple(label for label in common if old[label] != new[label]),
        reordered=tuple(
            kind
            for kind in kinds
            if [label for label in common if label[0] == kind]
            != [label for label in order if label[0] == kind]
        ),
    )


def _labelled(model: onnx.ModelProto) -> dict[tuple[str, ...], bytes]:
    """Records by label; a label that comes again is numbered, so that doubles show."""
    found: dict[tuple[str, ...], bytes] = {}
    for label, content in _records(model):
        unique, number = label, 2
        while unique in found:
            unique, number = (*label, f"#{number}"), number + 1
        found[unique] = content
    return found


def _records(model: onnx.ModelProto) -> Iterator[tuple[tuple[str, ...], bytes]]:
    graph = model.graph
    for node in graph.node:
        yield ("node", *node.output), node.SerializeToString()
    keyed = (
        ("initializer", graph.initializer),
        ("input", graph.input),
        ("output", graph.output),
        ("value_info", graph.value_info),
    )
    for kind, items in keyed:
        for item in items:
            yield (kind, item.name), item.SerializeToString()
    for note in graph.quantization_annotation:
        yield ("quantization_annotation", note.tensor_name), note.SerializeToString()
    for entry in model.metadata_props:
        yield ("metadata", entry.key), entry.SerializeToString()
    # What is left once the records above are taken out: versions, opsets, functions, the graph's
    # own name, metadata and sparse initializers, and fields this version of onnx does not know.
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    for name in ("node", "initializer", "input", "output", "value_info", "quantization_annotation"):
        rest.graph.ClearField(name)
    rest.ClearField("metadata_props")
    yield ("rest",), rest.SerializeToString()
