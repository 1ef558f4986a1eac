"""Fit: solve a set of surrogates front to back, and repair what they feed, in one walk.

The original and the compressed model walk through the data side by side. At every stop the
compressed model's own activations are the regressors and the ORIGINAL model's stream is the target,
so that each surrogate also undoes what those before it did. After the first of them, the linear
operations that feed the stream are solved again in the same way (refit), the weight they had being
the prior, and kept only where the error on held-out rows falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from ..calibration.features import Feature, rows_of
from ..calibration.masks import row_weights
from ..calibration.moments import Array
from ..calibration.regression import Regression
from ..calibration.runtime import cut_rows
from ..calibration.solve import solve, solve_held_out
from ..calibration.tape import Piece, Tape
from ..ir.blocks import Anatomy
from ..ir.onnx_linear import Linear, linear_into
from ..ir.spans import Span
from .replacement import Replacement
from .substitute import Substitute
from .surrogates import Form, Problem, problem
from .task import Task


@dataclass(frozen=True)
class Emphasis:
    """Rows at `positions` of the axis after the samples count `weight` times."""

    positions: tuple[int, ...] = ()
    weight: float = 1.0

    @property
    def is_flat(self) -> bool:
        return not self.positions or self.weight == 1.0

    def of(self, shape: Sequence[int], channel_axis: int) -> Array:
        """The weights (rows,) for a value of that shape."""
        axes = list(shape)
        del axes[channel_axis]
        weights = np.ones(axes)
        if not self.is_flat and len(axes) > 1:
            weights[:, list(self.positions)] = self.weight
        return weights.reshape(-1)


@dataclass(frozen=True)
class Wish:
    """A span and the form of surrogate to solve for it."""

    span: Span
    form: Form
    linear: Linear | None = None


class Fitter:
    """Solves sets of wishes on one task's fit and select splits."""

    def __init__(
        self,
        task: Task,
        streams: Sequence[Anatomy],
        emphasis: Emphasis = Emphasis(),
        *,
        refit: bool = True,
    ) -> None:
        self.task, self.emphasis, self.refit = task, emphasis, refit
        nodes = task.plain.graph.nodes
        self._order = {name: node.index for node in nodes for name in node.outputs}
        firsts = [cut.first for stream in streams for cut in stream.chain.cuts]
        found = {value: linear_into(task.plain, value) for value in firsts}
        self._sums = {value: linear for value, linear in found.items() if linear is not None}

    def build(self, wishes: Sequence[Wish]) -> list[Replacement]:
        """The replacements for the wishes and the refits after them, in the order of the graph.

        Solved on the fit split; the select split chooses each ridge and whether a refit is kept.
        """
        steps = [*wishes, *(self._refits(wishes) if self.refit else ())]
        steps.sort(key=lambda wish: self._order[wish.span.exit])
        return self._walk(steps, {})

    def rebuild(self, replacements: Sequence[Replacement]) -> list[Replacement]:
        """The same replacements solved once more, on fit and select together, every choice kept."""
        wishes = [Wish(r.span, r.surrogate, r.linear) for r in replacements]
        return self._walk(wishes, {r.span.exit: r for r in replacements})

    def _walk(self, steps: Sequence[Wish], fixed: Mapping[str, Replacement]) -> list[Replacement]:
        walk = _Walk(self.task, self.emphasis)
        try:
            for wish in steps:
                walk.step(wish, fixed.get(wish.span.exit))
            return walk.done
        finally:
            walk.close()

    def _refits(self, wishes: Sequence[Wish]) -> Iterator[Wish]:
        """The sums after the first wish that no wish removes or makes anew."""
        if not wishes:
            return
        first = min(self._order[wish.span.exit] for wish in wishes)
        gone = {node for wish in wishes for node in wish.span.removed}
        anew = {wish.span.exit for wish in wishes}
        anew |= {wish.linear.value for wish in wishes if wish.linear is not None}
        for value, linear in self._sums.items():
            at = self._order[value]
            if at > first and at not in gone and value not in anew:
                place = replace(wishes[0].span, entry=value, exit=value, name=value, blocks=0.0)
                yield Wish(replace(place, removed=frozenset(), side_inputs=()), "refit", linear)


class _Walk:
    """Both models on their way through the fit and the select split."""

    def __init__(self, task: Task, emphasis: Emphasis) -> None:
        self.task, self.emphasis = task, emphasis
        self.done: list[Replacement] = []
        self.model = task.plain
        self.tapes = [
            (self._tape(half), self._tape(half)) for half in (task.splits.fit, task.splits.select)
        ]

    def _tape(self, samples: NDArray[np.int64]) -> Tape:
        return Tape(self.task.data, samples, self.task.runtime, self.task.batch)

    def step(self, wish: Wish, before: Replacement | None) -> None:
        """Solve one wish on where both models stand now; again where it was solved `before`."""
        if wish.form == "identity":
            self._make(before or Replacement(wish.span, None, float("nan")))
            return
        asked = problem(self.task.plain, wish.form, wish.span, self._width(wish.span), wish.linear)
        fit, held = (self._regression(pair, asked) for pair in self.tapes)
        if before is not None and before.solution is not None:
            both = fit.merged(held).moments()
            solution = solve(both, [before.solution.ridge], asked.W0)[0]
            self._make(replace(before, solution=solution))
            return
        unseen = held.moments()
        solution = solve_held_out(fit.moments(), unseen, asked.W0)
        error = unseen.error(solution.W, solution.b)
        if wish.form == "refit" and error >= unseen.error(asked.W0, asked.b0):
            return
        share = error / (held.variance or 1.0)
        self._make(Replacement(wish.span, solution, share, wish.form, wish.linear))

    def _width(self, span: Span) -> int:
        dims = self.task.plain.graph.value(span.exit).shape or ()
        width = dims[span.channel_axis]
        assert isinstance(width, int)
        return width

    def _make(self, replacement: Replacement) -> None:
        self.done.append(replacement)
        self.model = Substitute(self.done)(self.task.plain).model

    def _regression(self, tapes: tuple[Tape, Tape], asked: Problem) -> Regression:
        original, compressed = tapes
        reads = [*asked.features, *([asked.given] if asked.given else [])]
        pieces = zip(
            original.advance(self.task.plain, [asked.target.value]),
            compressed.advance(self.model, [feature.value for feature in reads]),
            strict=True,
        )
        batches = (self._batch(truth, now, asked) for truth, now in pieces)
        return reduce(Regression.merged, batches)

    def _batch(self, truth: Piece, now: Piece, asked: Problem) -> Regression:
        x = np.concatenate([_rows(feature, now) for feature in asked.features], axis=1)
        given = None if asked.given is None else _rows(asked.given, now)
        return Regression.of(x, _rows(asked.target, truth), given, self._weights(truth, asked))

    def _weights(self, piece: Piece, asked: Problem) -> Array | None:
        """Padding counts nothing, emphasised positions more."""
        mask = self.task.padding(piece.feeds)
        if mask is None and self.emphasis.is_flat:
            return None
        axis = asked.target.channel_axis
        shape = _real(piece, asked.target.value).shape
        weights = self.emphasis.of(shape, axis)
        return weights if mask is None else weights * row_weights(mask[: piece.rows], shape, axis)

    def close(self) -> None:
        for pair in self.tapes:
            for tape in pair:
                tape.close()


def _rows(feature: Feature, piece: Piece) -> NDArray[np.floating]:
    return rows_of(feature, _real(piece, feature.value))


def _real(piece: Piece, name: str) -> NDArray[np.floating]:
    """A value without the rows that only fill up a fixed batch."""
    return cut_rows(piece.values[name], piece.rows, piece.size)
