"""The rewriting passes, one flat list. Any but the substitution can be switched off by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..ir.errors import BadInput
from ..ir.onnx_cache import equally_long, find_caches
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_unfuse import fuse, unfuse
from .base import Pass, PassResult
from .cleanup import Cleanup
from .interface import DropInputs, DropOutputs
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
    result = _run(unfuse(model), replacements, metadata, switches)
    return PassResult(fuse(model, result.model), result.changes)


def build(
    model: OnnxModel, replacements: Sequence[Replacement], switches: Switches = ALL_PASSES
) -> OnnxModel:
    """The rewritten model alone; `model` has no fused residual sums, and neither has the result."""
    return _run(model, replacements, {}, switches).model


def _run(
    model: OnnxModel,
    replacements: Sequence[Replacement],
    metadata: Mapping[str, str],
    switches: Switches,
) -> PassResult:
    outputs = {name for replacement in replacements for name in replacement.span.dropped}
    pasts, alike = caches_of(model, outputs), equally_long(model) if outputs else ()
    passes: tuple[Pass, ...] = (
        Substitute(replacements, metadata),
        DropOutputs(outputs),
        Cleanup(pasts, alike),
        DropInputs(pasts),
    )
    off = switches.off if outputs else {*switches.off, DropOutputs.name, DropInputs.name}
    changes: list[str] = []
    for step in passes:
        if step.name not in off:
            result = step(model)
            model = result.model
            changes += result.changes
    return PassResult(model, tuple(changes))


def caches_of(model: OnnxModel, outputs: Collection[str]) -> frozenset[str]:
    """The inputs whose numbers these outputs hold."""
    found = find_caches(model) if outputs else ()
    return frozenset(cache.past for cache in found if cache.present in outputs)
