"""Substitute: readers of a span's exit read a map of its entry instead.

    before   entry -> [attention, MLP, ...] -> exit -> readers
    after    entry -> MatMul W -> Add b     -> exit -> readers

The map takes over the exit's name, so its readers keep every byte. The span's own nodes are left to
the clean-up: some of what the first block makes (masks, tables, shapes) later blocks still read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..ir.onnx_door import FIRST_IR_WITH_NODE_METADATA, Delta, apply, insert, is_captured, rewire
from ..ir.onnx_file import OnnxModel
from .base import Pass, PassError, PassResult
from .replacement import Replacement


class Substitute(Pass):
    """Make all `replacements`, in the order of the graph; `metadata` is recorded in the model."""

    name: ClassVar[str] = "substitute"

    def __init__(
        self, replacements: Sequence[Replacement], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.replacements = tuple(replacements)
        self.metadata = dict(metadata or {})

    def run(self, model: OnnxModel) -> PassResult:
        delta = Delta(metadata=self.metadata)
        producer = model.graph.producer
        ordered = sorted(self.replacements, key=lambda made: producer[made.span.exit].index)
        notes = [_provenance(replacement) for replacement in ordered]
        rewired = {
            r.span.exit: r.span.entry
            for r in ordered
            if r.solution is None
            and r.span.exit not in model.graph.outputs
            and not is_captured(model, r.span.exit)
        }
        shared: set[str] = set()
        for replacement, note in zip(ordered, notes, strict=True):
            span = replacement.span
            if span.exit in rewired:
                rewire(model, delta, span.exit, span.entry)
            else:
                nodes = [n for n in replacement.nodes(model) if n.outputs[0].name not in shared]
                shared.update(node.outputs[0].name for node in nodes)
                for tensor in (tensor for node in nodes for tensor in node.inputs):
                    tensor.name = rewired.get(tensor.name, tensor.name)
                insert(model, delta, span.exit, nodes, note)
        if notes and model.proto.ir_version < FIRST_IR_WITH_NODE_METADATA:
            delta.metadata["blockfold.spans"] = json.dumps(notes)
        changes = tuple(
            f"{r.span.name}: {r.surrogate} from {r.span.entry!r} to {r.span.exit!r}"
            for r in ordered
        )
        return PassResult(apply(model, delta), changes)

    def ensures(self, before: OnnxModel, result: PassResult) -> None:
        for replacement in self.replacements:
            name = replacement.span.exit
            if replacement.solution is not None and result.model.graph.producer[name].op not in (
                "Add",
                "Conv",
            ):
                raise PassError(f"the map that makes {name!r} is not in the graph")


def _provenance(replacement: Replacement) -> dict[str, str]:
    """What a new node tells about itself; `namespace` lets viewers group it."""
    return {
        "blockfold.span": replacement.span.name,
        "blockfold.surrogate": replacement.surrogate,
        "blockfold.predicted_error": f"{replacement.predicted_error:.6g}",
        "namespace": f"blockfold/{replacement.span.name}",
    }
