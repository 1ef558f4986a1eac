"""Drop caches: the outputs, and then the inputs, that went with a removed block of a decoder.

    before   past.3.key, x -> [block 3] -> present.3.key, y
    after              x -> MatMul W -> Add b -> y

The outputs go first, so that the clean-up removes what was computed for them alone; the inputs go
after it, those that nothing reads any more. What keeps its name: nothing is numbered anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from ..ir.onnx_door import Delta, apply
from ..ir.onnx_file import OnnxModel
from .base import Dropped, Pass, PassResult


class DropOutputs(Pass):
    """Take away these outputs; what makes them stays."""

    name: ClassVar[str] = "drop outputs"

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def drops(self, model: OnnxModel) -> Dropped:
        return Dropped(outputs=self.names)

    def run(self, model: OnnxModel) -> PassResult:
        changes = tuple(f"dropped output {name!r}" for name in sorted(self.names))
        return PassResult(apply(model, Delta(dropped_outputs=set(self.names))), changes)


class DropInputs(Pass):
    """Take away those of these inputs that nothing reads."""

    name: ClassVar[str] = "drop inputs"

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def drops(self, model: OnnxModel) -> Dropped:
        read = set(model.graph.consumers) | model.graph.given
        return Dropped(inputs=self.names - read)

    def run(self, model: OnnxModel) -> PassResult:
        names = self.drops(model).inputs
        changes = tuple(f"dropped input {name!r}" for name in sorted(names))
        return PassResult(apply(model, Delta(dropped_inputs=set(names))), changes)
