"""Exits: what stands at the exits of replaced spans, against what the original has there."""

from __future__ import annotations

from collections.abc import Sequence

from ..calibration.features import as_rows
from ..calibration.masks import row_weights
from ..calibration.relative_error import RelativeError
from ..calibration.runtime import Runner
from ..calibration.tape import Pieces, Tape
from ..ir.onnx_file import OnnxModel
from .replacement import Replacement
from .task import Samples, Task


def exit_errors(
    task: Task, model: OnnxModel, replacements: Sequence[Replacement], samples: Samples
) -> tuple[float, ...]:
    """E |y - made|^2 / tr(Cyy) at each exit, y being the original's value, all made together.

    model: the task's plain one with the replacements made.
    """
    exits = [r.span.exit for r in replacements]
    left = {r.span.exit: r.span.entry for r in replacements if r.solution is None}
    made_at = {exit_: _standing_for(exit_, left) for exit_ in exits}
    pieces = Pieces(task.plain, task.runtime)
    original = Tape(pieces, task.data, samples, task.batch)
    original.reach(exits)
    pieces.close()  # before the other model is opened
    changed = Runner(model, task.runtime, list(dict.fromkeys(made_at.values())), pooled=True)
    found = [RelativeError() for _ in replacements]
    with task.stage("errors at the exits", len(samples)) as advance:
        for piece in original.batches():
            batch = piece.batch
            made, mask = changed(batch.feeds), task.padding(batch)
            for error, replacement in zip(found, replacements, strict=True):
                exit_, axis = replacement.span.exit, replacement.span.channel_axis
                y, there = piece.real(exit_), made[made_at[exit_]]
                weights = None if mask is None else row_weights(mask, y.shape, axis)
                error.add(as_rows(y, axis), as_rows(there, axis), weights)
            advance(len(batch.samples))
    return tuple(error.value for error in found)


def _standing_for(value: str, left: dict[str, str]) -> str:
    """The value that the readers of one now read, where spans were left out."""
    while value in left:
        value = left[value]
    return value
