"""Costs: what each unit of a model takes at the profile, measured by leaving it out.

Units of one kind (equal operators, equal weights) cost the same, so one of each kind is measured:
the model as it is in turns with the same without the unit, and with each kind of surrogate in its
place. Of a large model, which would be in memory twice, the unit alone is measured in that way.
The cost of any plan follows by addition; the chosen one is measured for itself in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..calibration.flops import flops
from ..calibration.latency import Profile, fit_together, take_turns
from ..calibration.runtime import Runner
from ..calibration.solve import Solution
from ..ir.blocks import Anatomy, Unit
from ..ir.onnx_file import OnnxModel
from ..ir.spans import Span
from .layout import Layout
from .pipeline import build
from .replacement import Replacement
from .section import sections_of
from .surrogates import Form, Wish, problem
from .task import Advance, Task

ROUNDS = 25
"""Turns of each model; a unit is a small part of the whole, so they are many."""

ROUND_SECONDS = 0.025
"""Of each model in a turn: rounds are many, so half the usual will do."""

MOST_AT_ONCE, AT_ONCE_BYTES = 8, 2**27
"""Changed models that are timed beside the original: as many, and what all may weigh together."""

TIMED: tuple[Form, ...] = ("affine", "affine + context", "conv")
"""Surrogates that are timed; folded ones cost nothing, and folding adds nothing to the others."""

PRICED_AS: Mapping[Form, Form] = {
    "affine + folded": "affine",
    "affine + folded + context": "affine + context",
}


@dataclass(frozen=True)
class Costs:
    """Milliseconds: of the whole model, and by kind of unit of the unit and of what may replace it.

    A kind is named after the first unit of it; `map_ms` goes by kind and form of surrogate.
    """

    model_ms: float
    unit_ms: Mapping[str, float]
    map_ms: Mapping[str, Mapping[str, float]]


class CostModel:
    """Savings of surrogates, by addition."""

    def __init__(self, streams: Sequence[Anatomy], costs: Costs) -> None:
        self._costs = costs
        self._kinds = {
            (stream.chain.source, unit.start): kind
            for stream in streams
            for unit, kind in zip(stream.units, unit_kinds(stream), strict=True)
        }

    @property
    def model_ms(self) -> float:
        return self._costs.model_ms

    def gained_ms(self, wish: Wish) -> float:
        """Time that a surrogate saves per run, as measured; noise can make it negative."""
        span, form = wish.span, PRICED_AS.get(wish.form, wish.form)
        kinds = [self._kinds[span.stream, at] for at in range(span.start, span.stop)]
        spent = sum(self._costs.unit_ms.get(kind, 0.0) for kind in kinds)
        return spent - self._costs.map_ms.get(kinds[-1], {}).get(form, 0.0)

    def saved_ms(self, wish: Wish) -> float:
        """As `gained_ms`, but never less than a thousandth of a unit's share of the model."""
        least = 1e-3 * self._costs.model_ms / max(1, len(self._kinds))
        return max(self.gained_ms(wish), least)

    def speedup(self, wishes: Iterable[Wish]) -> float:
        """Expected ratio of latencies, original over new."""
        left = self._costs.model_ms - sum(map(self.saved_ms, wishes))
        return self._costs.model_ms / max(left, 1e-2 * self._costs.model_ms)


def unit_kinds(stream: Anatomy) -> list[str]:
    """Per unit, the name of the first unit with the same operators and as many weights."""
    first: dict[object, str] = {}
    return [first.setdefault(_kind(unit), f"{unit.name}/{unit.start}") for unit in stream.units]


def _kind(unit: Unit) -> object:
    return tuple(sorted(node.op for node in unit.nodes)), unit.parameters


Savings = Callable[[Sequence[Wish]], tuple[float, Sequence[float]]]
"""What the whole model costs, and what each change made to it, alone, saves."""


def measure_costs(task: Task, layout: Layout, profile: Profile) -> Costs:
    """Time the model against itself without one unit of each kind and with surrogates in place."""
    small = fit_together([task.plain, task.plain])
    timed = _timed_in_the_whole if small else _timed_in_sections

    def savings(changes: Sequence[Wish]) -> tuple[float, Sequence[float]]:
        with task.stage("latency of units", len(changes)) as advance:
            return timed(task, profile, changes, advance)

    return weigh(layout, savings)


def _timed_in_the_whole(
    task: Task, profile: Profile, changes: Sequence[Wish], advance: Advance
) -> tuple[float, Sequence[float]]:
    original = Runner(task.plain, task.runtime)
    wholes: list[float] = []
    saved: list[float] = []
    many = _at_once(task.plain)
    for at in range(0, max(len(changes), 1), many):
        some = changes[at : at + many]
        others = [Runner(_changed(task.plain, wish), task.runtime) for wish in some]
        whole_ms, savings = _beside(original, others, profile)
        wholes.append(whole_ms)
        saved += savings
        advance(len(some))
    return float(np.median(wholes)), saved


def _at_once(model: OnnxModel) -> int:
    """How many changed models are timed beside the original: as there is room, and one at least."""
    return max(1, min(MOST_AT_ONCE, AT_ONCE_BYTES // model.size_bytes - 1))


def _timed_in_sections(
    task: Task, profile: Profile, changes: Sequence[Wish], advance: Advance
) -> tuple[float, Sequence[float]]:
    whole = Runner(task.plain, task.runtime)
    (timing,) = take_turns([whole], profile, rounds=ROUNDS)
    del whole
    saved = []
    for wish, section in zip(changes, sections_of(task, changes, profile.feeds), strict=True):
        original, other = section.model, _changed(section.model, Wish(section.span, wish.form))
        at = replace(profile, feeds=section.feeds)
        one, changed = Runner(original, task.runtime), Runner(other, task.runtime)
        saved += _beside(one, [changed], at)[1]
        advance(1)
    return timing.median_ms, saved


def _beside(one: Runner, others: Sequence[Runner], profile: Profile) -> tuple[float, list[float]]:
    """Milliseconds of one, and what each of the others saves of these."""
    runners = [one, *others]
    first, *rest = take_turns(runners, profile, rounds=ROUNDS, round_seconds=ROUND_SECONDS)
    # differences within a round: what slows the machine for a while slows all
    return first.median_ms, [float(np.median(first.rounds_ms - t.rounds_ms)) for t in rest]


def _changed(model: OnnxModel, wish: Wish) -> OnnxModel:
    return build(model, [blank(model, wish)])


def count_costs(task: Task, layout: Layout, profile: Profile) -> Costs:
    """FLOPs at the profile in the place of milliseconds: no clock has a part in them."""

    def savings(changes: Sequence[Wish]) -> tuple[float, Sequence[float]]:
        def counted(model: OnnxModel) -> float:
            return float(flops(model, task.runtime, profile.feeds))

        whole = counted(task.plain)
        return whole, [whole - counted(_changed(task.plain, wish)) for wish in changes]

    return weigh(layout, savings)


def weigh(layout: Layout, savings: Savings) -> Costs:
    """Costs in whatever `savings` are told in: of the whole, and of one unit of each kind.

    Units never cost more than the model: what noise says beyond is shared out among them.
    """
    chosen = _representatives(layout)
    changes = {
        (kind, form): Wish(span, form)
        for kind, span in chosen.items()
        for form in ("identity", *TIMED)
        if _can_be(span, form)
    }
    whole, saved = savings(list(changes.values()))
    found = dict(zip(changes, saved, strict=True))
    most = {kind: found[kind, _least(span)] for kind, span in chosen.items()}
    units = {kind: max(0.0, cost) for kind, cost in most.items()}
    kinds = [kind for stream in layout.anatomies for kind in unit_kinds(stream)]
    excess = max(1.0, sum(units.get(kind, 0.0) for kind in kinds) / whole)
    return Costs(
        whole,
        {kind: cost / excess for kind, cost in units.items()},
        {
            kind: {
                form: max(0.0, most[kind] - found[kind, form])
                for form in TIMED
                if (kind, form) in found
            }
            for kind in chosen
        },
    )


def blank(model: OnnxModel, wish: Wish) -> Replacement:
    """A surrogate with the weights it would have if nothing were solved."""
    if wish.form == "identity":
        return Replacement(wish.span, None, 0.0)
    prior = problem(model, wish.form, wish.span, None).prior
    solution = Solution(prior, np.zeros(prior.shape[1]), 0.0, 0, 0, 0.0)
    return Replacement(wish.span, solution, 0.0, wish.form)


def _least(span: Span) -> Form:
    """The cheapest that can stand in the span's place; what it costs counts as nothing."""
    return "affine" if span.strides else "identity"


def _can_be(span: Span, form: Form) -> bool:
    if form == "conv":
        return span.is_map
    if span.strides:
        return form == "affine"
    return form != "affine + context" or span.rank >= 3


def _representatives(layout: Layout) -> dict[str, Span]:
    """One span for every kind of unit that has any."""
    by_place = {(s.stream, s.start): s for s in layout.spans if s.stop - s.start == 1}
    found: dict[str, Span] = {}
    for stream in layout.anatomies:
        for unit, kind in zip(stream.units, unit_kinds(stream), strict=True):
            span = by_place.get((stream.chain.source, unit.start))
            if span is not None:
                found.setdefault(kind, span)
    return found
