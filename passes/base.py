"""The sealed pass: requires -> run -> ensures, with postconditions that no pass can forget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import onnx

from ..ir.onnx_file import OnnxModel, check


class PassError(RuntimeError):
    """A pass broke a promise: a bug of ours, never the user's fault."""


@dataclass(frozen=True)
class PassResult:
    """The model after the pass and what was changed, a line each."""

    model: OnnxModel
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Dropped:
    """Inputs and outputs of a model, by name, that a pass takes away."""

    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()


class Pass(ABC):
    """A rewrite of a model. Subclasses fill in `run` and may add `requires` and `ensures`."""

    name: ClassVar[str]

    @final
    def __call__(self, model: OnnxModel) -> PassResult:
        """Run the pass on a sound model. Raises PassError where its result breaks a promise."""
        self.requires(model)
        result = self.run(model)
        self._ensure_sound(model, result.model)
        self.ensures(model, result)
        return result

    def requires(self, model: OnnxModel) -> None:  # noqa: B027 - most passes take any sound model
        """Raise where the pass cannot work on this model."""

    @abstractmethod
    def run(self, model: OnnxModel) -> PassResult:
        """The rewrite itself."""

    def drops(self, model: OnnxModel) -> Dropped:
        """What this pass takes away of the model's interface: all of it, and nothing else."""
        return Dropped()

    def ensures(self, before: OnnxModel, result: PassResult) -> None:  # noqa: B027
        """Raise PassError where the result is not what this pass promises."""

    def _ensure_sound(self, before: OnnxModel, after: OnnxModel) -> None:
        """The graph is valid, and inputs and outputs keep names, order, dtypes and shapes.

        Those that the pass `drops` are gone.
        """
        try:
            check(after.proto)
        except onnx.checker.ValidationError as error:
            raise PassError(f"pass {self.name} made an invalid graph: {error}") from error
        gone = self.drops(before)
        for kind, names in (("input", gone.inputs), ("output", gone.outputs)):
            old, new = getattr(before.proto.graph, kind), getattr(after.proto.graph, kind)
            if [value for value in old if value.name not in names] != list(new):
                raise PassError(f"pass {self.name} changed the model's {kind}s")
