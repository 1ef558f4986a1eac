"""Costs: what each unit of a model takes at the profile, measured by leaving it out.

Units of one kind (equal operators, equal weights) cost the same, so one of each kind is measured:
the model as it is, without the unit, and with an affine map in the unit's place, in turns. The cost
of any plan follows by addition; the chosen one is measured for itself in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..calibration.latency import Profile, take_turns
from ..calibration.runtime import Runner
from ..ir.blocks import Anatomy, Unit
from ..ir.spans import Span
from .cleanup import Cleanup
from .replacement import Replacement
from .score import Redundancy, Survey
from .substitute import Substitute
from .task import Task


@dataclass(frozen=True)
class Costs:
    """Milliseconds: of the whole model, and by kind of unit of the unit and of a map in its place.

    A kind is named after the first unit of it.
    """

    model_ms: float
    unit_ms: Mapping[str, float]
    map_ms: Mapping[str, float]


class CostModel:
    """Savings of replacements, by addition."""

    def __init__(self, streams: Sequence[Anatomy], costs: Costs) -> None:
        self._costs = costs
        self._kinds = {
            (stream.chain.source, unit.start): kind
            for stream in streams
            for unit, kind in zip(stream.units, unit_kinds(stream), strict=True)
        }

    def gained_ms(self, replacement: Replacement) -> float:
        """Time that the replacement saves per run, as measured; noise can make it negative."""
        span = replacement.span
        kinds = [self._kinds[span.stream, at] for at in range(span.start, span.stop)]
        spent = sum(self._costs.unit_ms.get(kind, 0.0) for kind in kinds)
        if replacement.solution is not None:
            spent -= self._costs.map_ms.get(kinds[-1], 0.0)
        return spent

    def saved_ms(self, replacement: Replacement) -> float:
        """As `gained_ms`, but never less than a thousandth of a unit's share of the model."""
        least = 1e-3 * self._costs.model_ms / max(1, len(self._kinds))
        return max(self.gained_ms(replacement), least)

    def speedup(self, replacements: Sequence[Replacement]) -> float:
        """Expected ratio of latencies, original over new."""
        left = self._costs.model_ms - sum(map(self.saved_ms, replacements))
        return self._costs.model_ms / max(left, 1e-2 * self._costs.model_ms)


def unit_kinds(stream: Anatomy) -> list[str]:
    """Per unit, the name of the first unit with the same operators and as many weights."""
    first: dict[object, str] = {}
    return [first.setdefault(_kind(unit), f"{unit.name}/{unit.start}") for unit in stream.units]


def _kind(unit: Unit) -> object:
    return tuple(sorted(node.op for node in unit.nodes)), unit.parameters


def measure_costs(task: Task, survey: Survey, profile: Profile) -> Costs:
    """Time the model against itself without one unit of each kind and with a map in its place."""
    chosen = _representatives(survey)
    runners = [Runner(task.plain, task.runtime)]
    for redundancy in chosen.values():
        for solution in (None, redundancy.solution):
            replacement = Replacement(redundancy.span, solution, 0.0)
            model = Cleanup()(Substitute([replacement])(task.plain).model).model
            runners.append(Runner(model, task.runtime))
    with task.stage("latency of units", 1) as advance:
        whole, *rest = [timing.median_ms for timing in take_turns(runners, profile)]
        advance(1)
    without, mapped = rest[0::2], rest[1::2]
    return Costs(
        whole,
        {kind: max(0.0, whole - ms) for kind, ms in zip(chosen, without, strict=True)},
        {
            kind: max(0.0, with_map - ms)
            for kind, ms, with_map in zip(chosen, without, mapped, strict=True)
        },
    )


def _representatives(survey: Survey) -> dict[str, Redundancy]:
    """One measured span for every kind of unit that has any."""
    by_place = {(r.span.stream, r.span.start): r for r in survey.spans if _is_unit(r.span)}
    found: dict[str, Redundancy] = {}
    for stream in survey.anatomies:
        for unit, kind in zip(stream.units, unit_kinds(stream), strict=True):
            redundancy = by_place.get((stream.chain.source, unit.start))
            if redundancy is not None:
                found.setdefault(kind, redundancy)
    return found


def _is_unit(span: Span) -> bool:
    return span.stop - span.start == 1
