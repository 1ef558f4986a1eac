"""Forms: which surrogates a span can have, seen on the graph and on the data.

A span that mixes positions may be given the mean of its sample beside every row; one that is
causal, or treats every position by itself, may not: the mean would let in what it could not see.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..calibration.tape import Pieces
from ..ir.blocks import Anatomy
from ..ir.spans import Span
from .fit import Walk
from .stops import Stop
from .surrogates import CONTEXT, Form, Problem, Wish, problem
from .task import Task

NUDGE = 0.1
"""By what share of its size a row is changed to see what depends on it."""

RICHER: dict[Form, Form] = {
    "affine": "affine + folded",
    "affine + context": "affine + folded + context",
}
"""What a map becomes where the linear operation before it is solved again together with it."""


class Forms:
    """The forms of one task's spans."""

    def __init__(self, task: Task, walk: Walk, streams: Sequence[Anatomy]) -> None:
        self._task, self._pieces = task, walk.pieces
        self._cuts = {stream.chain.source: stream.chain.cuts for stream in streams}
        self._stops = {(stop.stream, stop.cut): stop for stop in walk.stops}
        self._mixes: dict[tuple[str, int], bool] = {}

    def stop(self, span: Span) -> Stop | None:
        """Where a span begins; None where that is an input of the model."""
        return self._stops.get((span.stream, span.start))

    def is_fed(self, span: Span) -> bool:
        """Whether a linear operation feeds the entry."""
        stop = self.stop(span)
        return stop is not None and stop.linear is not None

    def asked(self, wish: Wish) -> Problem:
        """What the wish is solved by; the identity by the map of its span, whose prior it is."""
        form = self.mapping(wish.span) if wish.form == "identity" else wish.form
        stop = self.stop(wish.span)
        linear = None if stop is None else stop.linear
        return problem(self._task.plain, form, wish.span, linear)

    def stored(self, wish: Wish) -> int:
        """How many numbers the surrogate adds to the model; folded ones take others' places."""
        if wish.form in ("identity", "folded"):
            return 0
        return (self.asked(wish).columns + 1) * wish.span.width

    def is_mixing(self, span: Span) -> bool:
        """Whether any unit of it lets the first position depend on the last."""
        return any(self._unit_mixes(span, at) for at in range(span.start, span.stop))

    def _unit_mixes(self, span: Span, at: int) -> bool:
        key = span.stream, at
        if key not in self._mixes:
            entry, exit_ = self._cuts[span.stream][at].last, self._cuts[span.stream][at + 1].first
            self._mixes[key] = mixes(self._task, self._pieces, entry, exit_, span.channel_axis)
        return self._mixes[key]

    def mapping(self, span: Span) -> Form:
        """The plain map of the span."""
        return "affine + context" if not span.strides and self.is_mixing(span) else "affine"

    def offered(self, span: Span) -> tuple[Form, ...]:
        """What may stand in the span's place, cheapest first."""
        if span.strides:
            return "affine", "conv"
        found: list[Form] = ["identity"]
        if self.is_fed(span):
            found.append("folded")
        found.append(self.mapping(span))
        if span.is_map:
            found.append("conv")
        return tuple(found)

    def richer(self, span: Span, form: Form) -> Form:
        """The form that is fitted best at about the same cost: itself, or one that folds too."""
        stop = self.stop(span)
        if stop is None or stop.linear is None or span.strides:
            return form
        if form in CONTEXT and not stop.is_aligned:
            return form
        return RICHER.get(form, form)


def mixes(task: Task, pieces: Pieces, entry: str, exit_: str, channel_axis: int) -> bool:
    """Whether the first position of a value depends on the last position of an earlier one.

    Seen on one sample, padding apart.
    """
    batch = next(iter(task.data.batches(task.splits.fit[:1], pieces.fixed_batch or 1)))
    tape = Walk(task, ()).tape(batch.samples)
    tape.reach([entry])
    (piece,) = tape.batches()
    x = np.array(np.moveaxis(piece.values[entry], channel_axis, -1), order="C")
    if x.ndim < 3:
        return False
    mask = task.padding(piece)
    flat = x.reshape(len(x), -1, x.shape[-1])
    last = flat.shape[1] - 1
    if mask is not None and mask.shape == x.shape[:-1]:
        last = int(np.flatnonzero(mask[0])[-1]) if mask[0].any() else 0
    if last == 0:
        return False
    runner = pieces.open([entry], [exit_])
    size = float(np.abs(flat).mean()) or 1.0
    rows = []
    nudge = NUDGE * size * np.random.default_rng(0).standard_normal(flat.shape[-1])
    for step in (0.0, nudge):  # of no one direction: a norm takes out what all channels share
        flat[:, last] += np.asarray(step, flat.dtype)
        moved = np.ascontiguousarray(np.moveaxis(x, -1, channel_axis))
        at_hand = {**piece.feeds, entry: moved}
        made = runner.run_whole({name: at_hand[name] for name in runner.inputs})[exit_]
        y = np.moveaxis(made, channel_axis, -1)
        rows.append(y.reshape(len(y), -1, y.shape[-1])[:, 0])
    return bool((rows[0] != rows[1]).any())
