"""Documents: which sections a report has, and what its verdict says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...passes.optimize import Attempt
from ...passes.plan import Plan
from ...passes.score import Survey
from ...passes.verify import shown
from ..wording import bounded, chance, judged, relative, score
from .advice import advice
from .changes import changes, foretold
from .circumstances import environment, refusals, reproduction
from .layers import likeness, steps
from .parts import Document, Section, Tile
from .spans import spans
from .strip import replaced
from .trials import nearest_plans, pareto

if TYPE_CHECKING:
    from ...passes.facts import Facts
    from ..results import Inspection, NotKept, Result

REUSED = (
    "The samples held back have been looked at. Running again with other settings on the same data "
    "voids the level of the limit."
)
RANDOM = "Made-up data: nothing here says anything of quality."


def of_result(result: Result, title: str, command: str | None) -> Document:
    """The report of a run that was kept."""
    plan, verdict = result.plan, result.verdict
    promised = verdict.promise is not None
    return Document(
        title=title,
        verdict="Promise kept" if promised else "Done, nothing promised",
        mood="good" if promised else "neutral",
        summary=_judgement(plan),
        tiles=_tiles(plan, result.before, result.after),
        warnings=_warnings(plan),
        advice=(),
        sections=_present(
            changes(result.optimized, result.before, result.after),
            replaced(result.optimized),
            pareto(result.optimized),
            foretold(result.optimized),
            *_layers(result.optimized, result.survey),
            refusals(plan.refusals),
            environment(plan),
            reproduction(command, made=True),
        ),
    )


def of_rejection(rejected: NotKept, title: str, command: str | None) -> Document:
    """The report of a run that ended without a model."""
    attempt, plan = rejected.attempt, rejected.attempt.plan
    judged_at_all = plan.verdict is not None
    return Document(
        title=title,
        verdict="Not kept" if judged_at_all else "Cannot be met",
        mood="bad",
        summary=(
            f"{str(rejected)[:1].upper()}{str(rejected).split('. Nearest: ')[0][1:]}.",
            "No model was written; a file of that name, if there is one, is of an earlier run.",
            *(_judgement(plan) if judged_at_all else ()),
        ),
        tiles=_tiles(plan, rejected.before, None),
        warnings=_warnings(plan),
        advice=advice(attempt),
        sections=_present(
            nearest_plans(attempt),
            changes(attempt, rejected.before, None) if judged_at_all else None,
            replaced(attempt),
            pareto(attempt),
            foretold(attempt),
            *_layers(attempt, rejected.survey),
            refusals(plan.refusals),
            environment(plan),
            reproduction(command, made=False),
        ),
    )


def of_inspection(found: Inspection, title: str, command: str | None) -> Document:
    """The report of a survey alone."""
    blocks = sum(len(stream.blocks) for stream in found.anatomies)
    units = sum(len(stream.units) for stream in found.anatomies)
    streams = {stream.chain.source: stream for stream in found.anatomies}
    similar = () if found.survey is None else found.survey.similarities
    return Document(
        title=title,
        verdict="Inspected",
        mood="neutral",
        summary=(f"{blocks} blocks, {units} units; {len(found.spans)} of them can be replaced.",),
        tiles=(),
        warnings=(RANDOM,) if found.random else (),
        advice=(),
        sections=_present(
            spans(found.anatomies, found.survey, None),
            likeness(streams, similar),
            steps(streams, similar),
            refusals(found.refusals),
            reproduction(command, made=False),
        ),
    )


def _present(*sections: Section | None) -> tuple[Section, ...]:
    return tuple(section for section in sections if section is not None)


def _layers(attempt: Attempt, survey: Survey | None) -> Iterable[Section | None]:
    streams = {stream.chain.source: stream for stream in attempt.layout.anatomies}
    similar = () if survey is None else survey.similarities
    yield spans(attempt.layout.anatomies, survey, attempt)
    yield likeness(streams, similar)
    yield steps(streams, similar)


def _judgement(plan: Plan) -> tuple[str, ...]:
    verdict = plan.verdict
    if verdict is None:
        return ()
    lines = [judged(verdict), bounded(verdict)]
    if verdict.promise is not None and verdict.chance is not None:
        lines.append(chance(verdict.chance))
    return tuple(f"{line[0].upper()}{line[1:]}." for line in lines)


def _tiles(plan: Plan, before: Facts, after: Facts | None) -> tuple[Tile, ...]:
    tiles = []
    if plan.latency is not None:
        timed = plan.latency
        spread = (
            f"{timed.original_ms:.3g} -> {timed.new_ms:.3g} ms; 10th to 90th percentile "
            f"{timed.low:.2f}x to {timed.high:.2f}x"
        )
        tiles.append(Tile("speed", f"{timed.ratio:.2f}x", spread))
    if after is not None:
        note = f"{before.size_bytes:,} -> {after.size_bytes:,} bytes"
        tiles.append(Tile("size", relative(before.size_bytes, after.size_bytes), note))
    if plan.verdict is not None:
        verdict, metric = plan.verdict, plan.verdict.metric
        kind = "certified" if verdict.bound.certified else "estimated"
        change = f"{score(metric, verdict.before)} -> {score(metric, verdict.after)}"
        tiles.append(Tile(f"drop of {metric}", shown(metric, verdict.drop), change))
        limit = "95 % sure" if verdict.bound.certified else "95 %, bootstrap"
        tiles.append(Tile(f"limit, {kind}", shown(metric, verdict.bound.upper), limit))
        if verdict.promise is not None:
            tiles.append(Tile("promised", shown(metric, verdict.promise), "at most"))
    return tuple(tiles)


def _warnings(plan: Plan) -> tuple[str, ...]:
    found = [f"{d.name}: {d.warning}." for d in plan.decisions if d.warning]
    if plan.data.random:
        found.insert(0, RANDOM)
    if plan.verdict is not None:
        found.append(REUSED)
    return tuple(found)
