"""Probe: what each surrogate of each span would do to the output, seen on a few samples.

The original is walked once over a thinned part of the fit and select splits. Every span of up to
four blocks is solved in all its forms from the moments at its ends. The error predicted from these,
times how much the output feels an error there, says which are worth being measured: there the
surrogate's value runs on to the output through the nodes that follow, alone. Where spans are ranked
by a metric of redundancy instead, those it rates lowest are measured and no others considered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..calibration.equations import Equations
from ..calibration.features import NotFinite, as_rows, require_finite
from ..calibration.runtime import Runner, cut_rows
from ..calibration.slots import Slot, Slots
from ..calibration.solve import Solution, Spectrum, solve_held_out
from ..calibration.tape import Tape
from ..ir.errors import BadInput
from ..ir.spans import Refusal, Span, prove
from .costs import CostModel
from .fit import NEGLIGIBLE, Walk
from .forms import Forms
from .layout import Layout
from .precision import OutOfRange, rounded
from .rating import UNTOLD, Metric, rating
from .recipe import Pair
from .rows import less, picked_rows
from .score import measure
from .stops import Stop
from .surrogates import Problem, Wish
from .task import Advance, Reference, thinned
from .verify import harm

LONGEST_RUN_BLOCKS = 4
MEASURED_PER_UNIT = 4
"""How many surrogates are measured at the output, on average for each unit."""

FEWEST_FIT, FEWEST_PICKED, MOST_SELECT = 32, 128, 64
"""Samples to solve on at least, also where only some of their rows are read in the end; samples to
measure on at most.
"""

ROWS_PER_COLUMN = 10

TELLING = 1e-6
"""An error below this does a damage that is lost among rounding errors: it may be seen as none."""


@dataclass(frozen=True)
class Option:
    """A surrogate by itself: its error at the exit, E |y - map|^2 / tr(Cyy), the damage at the
    output that this foretells, the damage to go by, and the harm by the task's own metric where
    both were measured.
    """

    wish: Wish
    error: float
    foretold: float
    damage: float
    harm: float | None

    @property
    def measured(self) -> bool:
        return self.harm is not None


class Effect(NamedTuple):
    """What a surrogate does to the output: by the smooth metric, and by the task's own."""

    damage: float
    harm: float


class Probe:
    """Solves and measures single surrogates of one task."""

    def __init__(
        self,
        layout: Layout,
        walk: Walk,
        forms: Forms,
        costs: CostModel,
        emphasis: float,
        rank_by: Metric | None = None,
    ) -> None:
        self.rank_by = rank_by
        self.task, self.layout, self.walk, self.forms = walk.task, layout, walk, forms
        self.costs, self.emphasis = costs, emphasis
        self._stops = {stop.value: stop for stop in walk.stops}
        self._variances: dict[str, float] = {}
        self._slots = Slots()
        self._solved: dict[Wish, tuple[Slot, Slot]] = {}
        self.refused: list[Refusal] = []

    def options(self) -> tuple[Option, ...]:
        """All surrogates worth a thought, those of least damage for what they save measured.

        Those that leave the range of the model's type are left out, and told of in `refused`.
        """
        wishes = [
            Wish(span, form)
            for span in self._spans()
            for form in self.forms.offered(span)
            if self._is_worthwhile(Wish(span, form))
        ]
        if self.rank_by is not None:
            wishes = self._shortlisted(wishes, self.rank_by)
        select = thinned(self.task.splits.select, MOST_SELECT)
        fit = thinned(self.task.splits.fit, self._fit_samples(wishes))
        places = self._places(Pair(self.walk.tape(fit), self.walk.tape(select)), wishes)
        errors = self._errors(places, wishes)
        self.walk.pieces.make_room(self.task.model.size_bytes)
        with Reference(self.task, select, "original on a few samples") as reference:
            return tuple(self._measured(places, reference, errors))

    def _spans(self) -> list[Span]:
        """Every provable stretch of up to four blocks, wherever it begins."""
        found = []
        for stream in self.layout.anatomies:
            longest = LONGEST_RUN_BLOCKS * max((b.stop - b.start for b in stream.blocks), default=1)
            units = len(stream.units)
            for start in range(units):
                for stop in range(start + 1, min(start + longest, units) + 1):
                    if stream.block_share(start, stop) == 0.0:
                        continue
                    graph, observed = self.task.plain.graph, self.layout.observed
                    proved = prove(graph, stream, start, stop, observed, self.task.droppable)
                    if isinstance(proved, Span) and proved.exit in self._stops:
                        found.append(proved)
        return [span for span in found if self.task.depends_on(span.exit)]

    @property
    def _most_measured(self) -> int:
        return MEASURED_PER_UNIT * sum(len(stream.units) for stream in self.layout.anatomies)

    def _shortlisted(self, wishes: Sequence[Wish], metric: Metric) -> list[Wish]:
        """As many as are measured, of the lowest rating for what they save.

        A rating below 0 is as good as 0. Spans that make feature maps smaller have none.
        """
        spans = [span for span in dict.fromkeys(w.span for w in wishes) if not span.strides]
        found = measure(self.task, self.layout, spans, f"rating of spans by {metric}")
        rated = {redundancy.span: rating(metric, redundancy) for redundancy in found}
        ranked: list[tuple[float, Wish]] = []
        for wish in wishes:
            value = rated.get(wish.span)
            if value is not None:
                ranked.append((max(value, 0.0) / self.costs.saved_ms(wish), wish))
        if not ranked:
            raise BadInput(f"--rank-by {metric}: this data tells it of no span: it takes {UNTOLD}")
        ranked.sort(key=lambda pair: pair[0])
        return [wish for _, wish in ranked[: self._most_measured]]

    def _is_worthwhile(self, wish: Wish) -> bool:
        """Whether the span is more than what would replace it."""
        parameters = self.task.plain.graph.parameters(wish.span.removed)
        return parameters > self.forms.stored(wish) or self.costs.gained_ms(wish) > 0

    def _fit_samples(self, wishes: Sequence[Wish]) -> int:
        """Enough rows for every column of the widest map of the stream."""
        is_picked = any(stop.picked for stop in self.walk.stops)
        most = FEWEST_PICKED if is_picked else FEWEST_FIT
        for span in {wish.span.entry: wish.span for wish in wishes}.values():
            shape = self.layout.observed[span.entry][0]
            rows = math.prod(shape[1:]) // span.width
            most = max(most, math.ceil(ROWS_PER_COLUMN * 2 * span.width / max(rows, 1)))
        return most

    def _places(self, tapes: Pair, wishes: Sequence[Wish]) -> dict[str | None, Pair]:
        """Where the original stands at every stop, with what surrogates from there are made of."""
        reads: dict[str | None, dict[str, None]] = {}
        for wish in wishes:
            stop = self.forms.stop(wish.span)
            asked = self.forms.asked(wish)
            given = [asked.given.value] if asked.given else []
            names = reads.setdefault(None if stop is None else stop.value, {})
            names.update(dict.fromkeys([f.value for f in asked.features] + given))
        found: dict[str | None, Pair] = {}
        for tape in tapes:
            tape.reach(reads.get(None, ()))
        found[None] = Pair(tapes.fit.fork(), tapes.select.fork())
        with self.task.stage("walk over a few samples", len(self.walk.stops)) as advance:
            for stop in self.walk.stops:
                for tape in tapes:
                    self.walk.pass_by(tape, stop, stop.live)
                    tape.reach(reads.get(stop.value, ()))
                found[stop.value] = Pair(tapes.fit.fork(), tapes.select.fork())
                for tape in tapes:
                    tape.keep([stop.value, *stop.live])
                advance(1)
        return found

    def _errors(
        self, places: Mapping[str | None, Pair], wishes: Sequence[Wish]
    ) -> list[tuple[Wish, float]]:
        """Every wish solved, with its error on the select samples."""
        groups: dict[tuple[str | None, tuple[object, ...]], list[tuple[Wish, Problem]]] = {}
        for wish in wishes:
            asked, stop = self.forms.asked(wish), self.forms.stop(wish.span)
            key = None if stop is None else stop.value, (asked.features, asked.given)
            groups.setdefault(key, []).append((wish, asked))
        found: list[tuple[Wish, float]] = []
        with self.task.stage("surrogates by themselves", len(groups)) as advance:
            for (begin, _), members in groups.items():
                found += self._solve_group(places, begin, members)
                advance(1)
        return found

    def _solve_group(
        self,
        places: Mapping[str | None, Pair],
        begin: str | None,
        members: Sequence[tuple[Wish, Problem]],
    ) -> list[tuple[Wish, float]]:
        """Wishes with the same regressors: one Gram matrix, one eigendecomposition."""
        exits = list(dict.fromkeys(wish.span.exit for wish, _ in members))
        asked = members[0][1]
        fit, select = (
            self._gather(asked, places[begin][side], [places[e][side] for e in exits], exits)
            for side in (0, 1)
        )
        spectrum: Spectrum | None = None
        found = []
        for wish, asked in members:
            seen, held = (side.moments(wish.span.exit, self.emphasis) for side in (fit, select))
            spectrum = spectrum or Spectrum.of(seen)
            if wish.form == "identity":
                solution = Solution(asked.prior, np.zeros(wish.span.width), 0.0, 0, 0, 0.0)
            else:
                solution = solve_held_out(
                    seen, held, asked.prior, spectrum=spectrum, least=asked.least_ridge
                )
            try:
                solution = rounded(solution, wish.span.dtype)
            except OutOfRange as error:
                self._refuse(wish, str(error))
                continue
            self._keep(wish, solution)
            exit_ = wish.span.exit
            variance = self._variance(self._stops[exit_], places[exit_].select) or 1.0
            found.append((wish, held.error(solution.W, solution.b) / variance))
        return found

    def _gather(
        self, asked: Problem, begin: Tape, ends: Sequence[Tape], exits: Sequence[str]
    ) -> Equations:
        equations = Equations(exits)
        for now, *then in zip(begin.batches(), *(t.batches() for t in ends), strict=True):
            x, given = self.walk.columns(asked, now, real=True)
            values = [piece.real(name) for piece, name in zip(then, exits, strict=True)]
            axes = [self._stops[name].channel_axis for name in exits]
            targets = [as_rows(v, axis) for v, axis in zip(values, axes, strict=True)]
            weights = self.walk.padding(now, values[0].shape, axes[0])
            for y, name in zip(targets, exits, strict=True):
                require_finite(y, name, weights, now.samples)
            targets = [y if given is None else less(y, given) for y in targets]
            picked = picked_rows(self._stops[exits[0]].picked, values[0].shape, axes[0])
            equations.add(x, targets, weights, picked)
        return equations

    def _variance(self, stop: Stop, tape: Tape) -> float:
        """tr(Cyy) of the original's value at a stop, rows weighed as they are to be solved."""
        if stop.value not in self._variances:
            equations = Equations(["y"])
            for piece in tape.batches():
                value = piece.real(stop.value)
                rows = as_rows(value, stop.channel_axis)
                weights = self.walk.padding(piece, value.shape, stop.channel_axis)
                picked = picked_rows(stop.picked, value.shape, stop.channel_axis)
                equations.add(rows[:, :1], [rows], weights, picked)
            self._variances[stop.value] = equations.moments("y", self.emphasis).variance
        return self._variances[stop.value]

    def _keep(self, wish: Wish, solution: Solution) -> None:
        """Put a solution on disk; single precision is what it is applied in."""
        W, b = (array.astype(np.float32) for array in (solution.W, solution.b))
        self._solved[wish] = self._slots.put(W), self._slots.put(b)

    def _kept(self, wish: Wish) -> Solution:
        W, b = (self._slots.get(slot).astype(np.float64) for slot in self._solved[wish])
        return Solution(W, b, 0.0, 0, 0, 0.0)

    def _measured(
        self,
        places: Mapping[str | None, Pair],
        reference: Reference,
        errors: Sequence[tuple[Wish, float]],
    ) -> list[Option]:
        """Measure at each exit the surrogate of least error, then those that promise most.

        The first tells how much the output feels an error there, so its own must be one that tells,
        where there is any.
        """
        best: dict[str, tuple[Wish, float]] = {}
        for wish, error in sorted(errors, key=lambda found: (found[1] <= TELLING, found[1])):
            best.setdefault(wish.span.exit, (wish, error))
        left = max(self._most_measured, len(best)) - len(best)
        with self.task.stage("surrogates at the output", len(best) + left) as advance:
            effects = self._effects(places, reference, [w for w, _ in best.values()], advance)
            feels = {
                name: effects[wish].damage / max(error, NEGLIGIBLE)
                for name, (wish, error) in best.items()
            }

            def expected(found: tuple[Wish, float]) -> float:
                return found[1] * feels[found[0].span.exit] if found[1] > 0 else 0.0

            others = [found for found in errors if found[0] not in effects]
            others.sort(key=lambda found: expected(found) / self.costs.saved_ms(found[0]))
            effects |= self._effects(places, reference, [w for w, _ in others[:left]], advance)
        options = []
        for wish, error in errors:
            foretold, effect = expected((wish, error)), effects.get(wish)
            damage = foretold if effect is None else effect.damage
            if math.isfinite(damage):
                harm = None if effect is None else effect.harm
                options.append(Option(wish, error, foretold, damage, harm))
        return options

    def _effects(
        self,
        places: Mapping[str | None, Pair],
        reference: Reference,
        wishes: Sequence[Wish],
        advance: Advance,
    ) -> dict[Wish, Effect]:
        """What each does to the output.

        Endless where a surrogate makes anything leave the range of the model's type.
        """
        found: dict[Wish, Effect] = {}
        for exit_ in dict.fromkeys(wish.span.exit for wish in wishes):
            there = [wish for wish in wishes if wish.span.exit == exit_]
            found |= self._effects_from(exit_, places, reference, there, advance)
        return found

    def _effects_from(
        self,
        exit_: str,
        places: Mapping[str | None, Pair],
        reference: Reference,
        wishes: Sequence[Wish],
        advance: Advance,
    ) -> dict[Wish, Effect]:
        """Effects of wishes with one exit, by one session from there to the output."""
        given, output = [exit_, *self._stops[exit_].live], self.task.output
        rest = None if output in given else self.walk.pieces.open(given, [output])
        found = {}
        for wish in wishes:
            try:
                scores, damage = reference.judge(self._outputs(places, wish, rest))
                found[wish] = Effect(max(damage, 0.0), max(harm(self.task, scores), 0.0))
            except NotFinite as error:
                self._refuse(wish, f"then {error.value!r} holds NaN or Inf")
                found[wish] = Effect(math.inf, math.inf)
            advance(1)
        return found

    def _refuse(self, wish: Wish, reason: str) -> None:
        graph = self.task.plain.graph
        self.refused.append(wish.span.refused(graph, f"{wish.form}: {reason}"))

    def _outputs(
        self, places: Mapping[str | None, Pair], wish: Wish, rest: Runner | None
    ) -> Iterator[NDArray[np.floating]]:
        """Outputs of the model with one surrogate, batch by batch."""
        begin, exit_ = self.forms.stop(wish.span), wish.span.exit
        now = places[None if begin is None else begin.value].select
        then, asked, solution = places[exit_].select, self.forms.asked(wish), self._kept(wish)
        output = self.task.output
        for piece, truth in zip(now.batches(), then.batches(), strict=True):
            shape = truth.values[exit_].shape
            made = np.ascontiguousarray(self.walk.applied(piece, asked, solution, shape))
            if rest is not None:
                read = {n: truth.at_hand(n) for n in rest.inputs if n != exit_}
                made = rest.run_whole({**read, exit_: made})[output]
            elif output != exit_:
                made = truth.values[output]
            made = cut_rows(made, len(truth.samples), truth.size)
            require_finite(made, output)
            yield made
