"""The rewriting passes, one flat list. Any but the substitution can be switched off by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_unfuse import fuse, unfuse
from .base import Pass, PassResult
from .cleanup import Cleanup
from .replacement import Replacement
from .substitute import Substitute


@dataclass(frozen=True)
class Switches:
    """Names of passes not to run. Raises BadInput for a name that is no optional pass."""

    off: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.off - OPTIONAL
        if unknown:
            known = ", ".join(sorted(OPTIONAL))
            raise BadInput(f"--skip {min(unknown)}: no such pass; it is one of {known}")


OPTIONAL = frozenset({Cleanup.name})
ALL_PASSES = Switches()


def rewrite(
    model: OnnxModel,
    replacements: Sequence[Replacement],
    metadata: Mapping[str, str],
    switches: Switches,
) -> PassResult:
    """Run the passes in order and collect what they changed.

    Fused residual sums are taken apart before, and put back where they are still whole.
    """
    original, model = model, unfuse(model)
    passes: tuple[Pass, ...] = (
        Substitute(replacements, metadata),
        Cleanup(),
    )
    changes: list[str] = []
    for step in passes:
        if step.name not in switches.off:
            result = step(model)
            model = result.model
            changes += result.changes
    return PassResult(fuse(original, model), tuple(changes))
