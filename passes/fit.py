"""Fit: solve sets of surrogates front to back, and repair what they feed, in one walk.

The original and any number of compressed models walk through the data side by side. At every stop
the compressed model's own activations are the regressors and the ORIGINAL model's stream is the
target, so that each surrogate also undoes what those before it did. After the first of them, the
linear operations that feed the stream are solved again in the same way (refit), the weight they had
being the prior, and kept only where the error on held-out rows falls. At the end of the walk each
model's output is there to be scored, without having been built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..calibration.equations import Equations
from ..calibration.features import Feature, NotFinite, require_finite
from ..calibration.moments import Array
from ..calibration.solve import RIDGES, Solution, solve_held_out
from ..calibration.tape import Piece, Pieces, Tape
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import Linear, matrix, offset
from ..ir.spans import Refusal, Span
from .precision import OutOfRange, rounded
from .recipe import Fitted, Pair, Recipe
from .replacement import Replacement
from .rows import Rows
from .stops import Stop
from .surrogates import CONTEXT, FOLDED, Form, Problem, Wish, linear_input, problem
from .task import Task

Floats = NDArray[np.floating]

WORTHWHILE = 0.01
"""By what share a refit must lower the error on held-out rows to be kept."""

NEGLIGIBLE = 1e-8
"""Error, as a share of the variance, that float32 activations cannot tell from none."""


class Walk(Rows):
    """Walks of one task's model over its fit and select splits; sessions are shared by all."""

    def __init__(self, task: Task, stops: Sequence[Stop]) -> None:
        super().__init__(task)
        self.stops = tuple(stops)
        self.pieces = Pieces(task.plain, task.runtime)
        self._weights: dict[str, tuple[Array, Array]] = {}

    def tape(self, samples: NDArray[np.int64]) -> Tape:
        """A new tape over some samples, at the model's inputs."""
        return Tape(self.pieces, self.task.data, samples, self.task.batch)

    def __call__(self, recipes: Sequence[Recipe]) -> list[Fitted]:
        """Fit every recipe. The original is walked once for all of them."""
        original = Pair(self.tape(self.task.splits.fit), self.tape(self.task.splits.select))
        walkers = [_Walker(self, recipe) for recipe in recipes]
        for walker in walkers:
            walker.depart(None, original)
        with self.task.stage("fit", len(self.stops)) as advance:
            for stop in self.stops:
                going = [walker for walker in walkers if walker.refusal is None]
                for tape in original:
                    self.pass_by(tape, stop, stop.live)
                for walker in going:
                    walker.meet(stop, original)
                    walker.depart(stop, original)
                needed = [n for w in walkers if w.recipe.healing.original for n in w.reads]
                for tape in original:
                    tape.keep([stop.value, *stop.live, *needed])
                advance(1)
        return [walker.arrive() for walker in walkers]

    def solved_on_both(
        self, solved: Sequence[tuple[Recipe, Sequence[Replacement]]]
    ) -> list[tuple[Replacement, ...]]:
        """Recipes' replacements solved once more, on both splits together, every choice kept.

        Raises NotMet where the model's type cannot hold what comes out.
        """
        recipes = [
            replace(recipe, known={replacement.span.exit: replacement for replacement in made})
            for recipe, made in solved
        ]
        found = []
        for again in self(recipes):
            again.require()
            again.close()
            found.append(again.replacements)
        return found

    def pass_by(
        self, tape: Tape, stop: Stop, live: Sequence[str], solution: Solution | None = None
    ) -> None:
        """Run a tape on to a stop, its linear operation as it is or solved again."""
        linear = stop.linear
        made_of = [] if linear is None else [linear.u, linear.residual]
        if linear is None or solution is None:
            tape.reach([*made_of, stop.value, *live])
            return
        tape.reach(made_of)
        asked = Problem(
            (linear_input(linear),),
            Feature(linear.residual, stop.channel_axis),
            Feature(stop.value, stop.channel_axis),
            len(solution.W),
            lambda: solution.W,
        )
        tape.put(
            stop.value,
            lambda piece: self.applied(piece, asked, solution, piece.values[linear.residual].shape),
        )
        tape.reach(live)

    def weights(self, linear: Linear) -> tuple[Array, Array]:
        """W and b of a linear operation as it is; those of the last one are at hand."""
        if linear.value not in self._weights:
            W = matrix(self.task.plain, linear)
            self._weights = {linear.value: (W, offset(self.task.plain, linear, W.shape[1]))}
        return self._weights[linear.value]


class _Walker:
    """One compressed model on its way; up to its first span it is still the original.

    It stops for good where what was put into it leaves the range of the model's type.
    """

    def __init__(self, walk: Walk, recipe: Recipe) -> None:
        self.walk, self.recipe = walk, recipe
        self.done: list[Replacement] = []
        self.refusal: Refusal | None = None
        self._tapes: Pair | None = None
        self._jumps: dict[str, _Jump] = {}
        stops = {(stop.stream, stop.cut) for stop in walk.stops}
        self._waiting: dict[tuple[str, int] | None, list[Wish]] = {}
        for wish in recipe.wishes:
            begin = wish.span.stream, wish.span.start
            self._waiting.setdefault(begin if begin in stops else None, []).append(wish)

    def depart(self, stop: Stop | None, original: Pair) -> None:
        """Jump off where a span begins: at a stop, or at the model's inputs (None)."""
        if self.refusal is None:
            with self._in_range():
                self._depart(stop, original)

    def _depart(self, stop: Stop | None, original: Pair) -> None:
        for wish in self._waiting.get(None if stop is None else (stop.stream, stop.cut), ()):
            model, linear = self.walk.task.plain, None if stop is None else stop.linear
            jump = _Jump.of(model, wish, linear)
            self._jumps[wish.span.stream] = jump
            self._tapes = self._tapes or Pair(original.fit.fork(), original.select.fork())
            for tape in (*self._tapes, *(original if self.recipe.healing.original else ())):
                tape.reach(jump.reads)
        if self._tapes is not None and stop is not None:
            for tape in self._tapes:
                tape.keep([stop.value, *stop.live, *self.reads])

    @property
    def reads(self) -> list[str]:
        """What the jumps under way are still to be solved on."""
        return [name for jump in self._jumps.values() for name in jump.reads]

    def meet(self, stop: Stop, original: Pair) -> None:
        """Come to a stop: on foot, over it in a jump, or at the end of one."""
        if self._tapes is not None:
            with self._in_range():
                self._meet(self._tapes, stop, original)

    def _meet(self, tapes: Pair, stop: Stop, original: Pair) -> None:
        jump = self._jumps.get(stop.stream)
        if jump is not None and stop.value == jump.span.exit:
            self._land(jump, stop, original)
        elif jump is None or not stop.is_inside(jump.span):
            folds = any(w.form in FOLDED for w in self._waiting.get((stop.stream, stop.cut), ()))
            solution = None if folds else self._refit(stop, original)
            model = self.walk.task.plain
            gone = {name for jump in self._jumps.values() for name in jump.gone(model)}
            live = [name for name in stop.live if name not in gone]
            for tape in tapes:
                self.walk.pass_by(tape, stop, live, solution)

    def arrive(self) -> Fitted:
        """Run on to the output."""
        assert self._tapes is not None, "a recipe without wishes"
        if self.refusal is None:
            with self._in_range():
                self._reach_output(self._tapes, self.walk.task.output)
        return Fitted(self.recipe, tuple(self.done), self._tapes, self.refusal)

    def _reach_output(self, tapes: Pair, output: str) -> None:
        for tape in tapes:
            tape.reach([output])
            tape.keep([output])
            for values in tape.real(output):
                require_finite(values, output)

    @contextmanager
    def _in_range(self) -> Iterator[None]:
        """Takes NaN or Inf behind the first replacement for what the replacements did."""
        try:
            yield
        except NotFinite as error:
            if not self.done:
                raise
            last = [made for made in self.done if made.form != "refit"][-1]
            self._refuse(last.span, f"then {error.value!r} holds NaN or Inf")

    def _refuse(self, span: Span, reason: str) -> None:
        """Stop for good, for a reason that shows at the end of a span."""
        self.refusal = span.refused(self.walk.task.plain.graph, reason)
        for tape in self._tapes or ():
            tape.keep([])

    def _land(self, jump: _Jump, stop: Stop, original: Pair) -> None:
        assert self._tapes is not None
        span, form, healing = jump.span, jump.form, self.recipe.healing
        tapes = original if healing.original else self._tapes
        if form == "identity":
            solution = Solution(np.eye(span.width), np.zeros(span.width), 0.0, 0, 0, 0.0)
            held = self.walk.equations(tapes.select, original.select, jump.asked, stop.picked)
        else:
            tied = jump.linear if healing.tied else None
            solution, held = self._solve(jump.asked, tapes, original, stop, healing.emphasis, tied)
            try:
                solution = rounded(solution, span.dtype)
            except OutOfRange as beyond:
                self._refuse(span, str(beyond))
                return
        known = self._known(span.exit)
        error = held.moments("y").error(solution.W, solution.b)
        error /= self.walk.variance(stop, original.select) or 1.0
        self.done.append(
            Replacement(
                span,
                None if form == "identity" else solution,
                error if known is None else known.predicted_error,
                form,
                jump.linear if form in FOLDED else None,
                self.walk.task.mask if form in CONTEXT else None,
            )
        )
        for tape, truth in zip(self._tapes, original, strict=True):
            shapes = iter([piece.values[span.exit].shape for piece in truth.batches()])

            def made(piece: Piece, at: Iterator[tuple[int, ...]] = shapes) -> Floats:
                return self.walk.applied(piece, jump.asked, solution, next(at))

            tape.put(span.exit, made)
        del self._jumps[stop.stream]
        model = self.walk.task.plain
        gone = {name for other in self._jumps.values() for name in other.gone(model)}
        for tape in self._tapes:
            tape.reach([name for name in stop.live if name not in gone])

    def _refit(self, stop: Stop, original: Pair) -> Solution | None:
        """The sum's linear operation solved again, None where it stays as it is."""
        weight, linear = self.recipe.healing.refit, stop.linear
        known = self._known(stop.value)
        if linear is None or weight is None or (self.recipe.known is not None and known is None):
            return None
        assert self._tapes is not None
        span = self._place(stop)
        asked = problem(self.walk.task.plain, "refit", span, linear)
        for tape in self._tapes:
            tape.reach([linear.u, linear.residual])
        solution, held = self._solve(asked, self._tapes, original, stop, weight)
        try:
            solution = rounded(solution, span.dtype)
        except OutOfRange:
            return None
        moments = held.moments("y", weight)
        W, b = self.walk.weights(linear)
        before, variance = moments.error(W, b), self.walk.variance(stop, original.select) or 1.0
        after = moments.error(solution.W, solution.b)
        is_kept = before > NEGLIGIBLE * variance and after <= (1 - WORTHWHILE) * before
        if known is None and not is_kept:
            return None
        error = held.moments("y").error(solution.W, solution.b) / variance
        error = error if known is None else known.predicted_error
        self.done.append(Replacement(span, solution, error, "refit", linear))
        return solution

    def _place(self, stop: Stop) -> Span:
        """The sum at a stop as a span of no length."""
        value = self.walk.task.plain.graph.value(stop.value)
        like = self.recipe.wishes[0].span
        width = self.walk.weights(stop.linear)[0].shape[1] if stop.linear else 0
        return Span(
            stream=stop.stream,
            start=stop.cut,
            stop=stop.cut,
            entry=stop.value,
            exit=stop.value,
            channel_axis=stop.channel_axis,
            rank=stop.rank,
            dtype=value.dtype or like.dtype,
            name=stop.value,
            blocks=0.0,
            removed=frozenset(),
            side_inputs=(),
            width=width,
        )

    def _solve(
        self,
        asked: Problem,
        tapes: Pair,
        original: Pair,
        stop: Stop,
        emphasis: float,
        tied: Linear | None = None,
    ) -> tuple[Solution, Equations]:
        """The solution and the equations of the select split, which chose its ridge.

        Where the ridge is known it is solved on both splits together.
        """
        for truth in original:
            self.walk.require_finite(truth, stop)
        healing, prior = self.recipe.healing, asked.prior
        ridges: tuple[float, ...] = RIDGES
        fit, held = (
            self.walk.equations(
                tape, truth, asked, stop.picked, whole=self.recipe.known is not None
            )
            for tape, truth in zip(tapes, original, strict=True)
        )
        known = self._known(stop.value)
        if known is not None and known.solution is not None:
            fit, ridges = fit.merged(held), (known.solution.ridge,)
        seen, unseen = (side.moments("y", emphasis) for side in (fit, held))
        W0, b0 = (None, None) if tied is None else self.walk.weights(tied)
        if W0 is not None and b0 is not None:
            seen, unseen = seen.through(W0, b0), unseen.through(W0, b0)
            prior = np.eye(len(b0))
        if not healing.bias:
            seen, unseen = seen.about_zero(), unseen.about_zero()
        if not healing.ridge:
            prior, ridges = np.zeros_like(prior), (0.0,)
        solution = solve_held_out(seen, unseen, prior, ridges, least=asked.least_ridge)
        if W0 is not None and b0 is not None:
            T = solution.W
            solution = replace(solution, W=W0 @ T, b=solution.b + b0 @ T)
        return solution, held

    def _known(self, exit_: str) -> Replacement | None:
        return None if self.recipe.known is None else self.recipe.known.get(exit_)


@dataclass(frozen=True, eq=False)
class _Jump:
    """A span being jumped over, and what its surrogate is made of."""

    span: Span
    form: Form
    linear: Linear | None
    asked: Problem

    @classmethod
    def of(cls, model: OnnxModel, wish: Wish, linear: Linear | None) -> _Jump:
        form: Form = "affine" if wish.form == "identity" else wish.form
        return cls(wish.span, wish.form, linear, problem(model, form, wish.span, linear))

    @property
    def reads(self) -> list[str]:
        given = [self.asked.given.value] if self.asked.given else []
        return [feature.value for feature in self.asked.features] + given

    def gone(self, model: OnnxModel) -> set[str]:
        """Values that nothing makes any more."""
        return {n for index in self.span.removed for n in model.graph.nodes[index].outputs}
