"""Sections about the plans that were tried: quality lost against latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from ...passes.optimize import Attempt
from ...passes.replacement import Replacement
from ...passes.trial import Trial
from ...passes.verify import shown, unit
from .drawing import BLUE, GREY, ORANGE, RED, drawn, label
from .parts import Figure, Section, Table, View

NEAREST = 5
"""How many of the plans that came nearest are listed where none was kept."""


def nearest(attempt: Attempt) -> list[Trial]:
    """The plans tried, those first that come nearest to the budget; a chosen one before all."""
    ranked = attempt.plan.budget.nearest(attempt.trials)
    return sorted(ranked, key=lambda trial: trial is not attempt.chosen)


def made(trial: Trial) -> list[Replacement]:
    """What a trial puts in the place of spans."""
    return [replacement for replacement in trial.replacements if replacement.form != "refit"]


def nearest_plans(attempt: Attempt) -> Section | None:
    trials = nearest(attempt)[:NEAREST]
    return Section("Nearest plans", (), _table(attempt, trials)) if trials else None


@dataclass(frozen=True)
class _Point:
    """A trial where it is drawn: its latency, its drop and the limit expected of that."""

    ms: float
    drop: float
    limit: float
    trial: Trial


def pareto(attempt: Attempt) -> Section | None:
    """All plans by what they lose on the select split and what they take."""
    plan, trials = attempt.plan, attempt.trials
    if not trials:
        return None
    scale = 100.0 if unit(plan.metric) == "points" else 1.0
    points = [
        _Point(_ms(attempt, t), scale * t.scores.drop, scale * t.forecast.upper, t) for t in trials
    ]
    points.sort(key=lambda point: (point.ms, point.drop))
    model_ms = _model_ms(attempt)
    figure = go.Figure()
    front = list(_front([*((point.ms, point.drop) for point in points), (model_ms, 0.0)]))
    figure.add_scatter(
        x=[ms for ms, _ in front],
        y=[drop for _, drop in front],
        mode="lines",
        line={"shape": "hv", "color": GREY, "width": 1.5},
        name="least loss",
        hoverinfo="skip",
    )
    _mark(figure, "tried", [p for p in points if p.trial is not attempt.chosen], attempt)
    _mark(figure, "chosen", [p for p in points if p.trial is attempt.chosen], attempt)
    figure.add_scatter(
        x=[model_ms],
        y=[0.0],
        mode="markers",
        marker={"color": GREY, "symbol": "diamond", "size": 10},
        name="original",
        hovertext=[f"original: {model_ms:.3g} ms"],
        hoverinfo="text",
    )
    if plan.budget.max_drop is not None:
        figure.add_hline(
            y=scale * plan.budget.max_drop,
            line={"dash": "dash", "color": RED, "width": 1.5},
            annotation={"text": "promised", "font": {"color": RED}},
            annotation_position="top left",
        )
    figure.update_xaxes(title="expected latency, ms", rangemode="tozero")
    figure.update_yaxes(title=f"drop of {label(plan.metric)}, {label(unit(plan.metric))}")
    text = (
        f"Each mark is a set of replacements, fitted and measured on {plan.data.select} samples; "
        "the line up from it reaches to the limit expected on the samples held back. The faster "
        "and the lower, the better.",
    )
    says = f"Drop of {plan.metric} against expected latency of all plans that were tried"
    table = _table(attempt, [point.trial for point in points])
    drawing = Figure("pareto", says, (View("", drawn(figure, 420)),), table)
    return Section("Quality against latency", text, figures=(drawing,))


def _mark(figure: go.Figure, name: str, points: Sequence[_Point], attempt: Attempt) -> None:
    is_chosen = name == "chosen"
    figure.add_scatter(
        x=[point.ms for point in points],
        y=[point.drop for point in points],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [max(point.limit - point.drop, 0.0) for point in points],
            "arrayminus": [0.0] * len(points),
            "thickness": 1,
            "width": 0,
        },
        mode="markers",
        marker={
            "color": ORANGE if is_chosen else BLUE,
            "symbol": "star" if is_chosen else "circle",
            "size": 16 if is_chosen else 8,
        },
        name=name,
        hovertext=[_hover(point.trial, attempt) for point in points],
        hoverinfo="text",
    )


def _front(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Latencies and drops that no faster point undercuts, the fastest first."""
    least = float("inf")
    for ms, drop in sorted(points):
        if drop < least:
            least = drop
            yield ms, drop


def _hover(trial: Trial, attempt: Attempt) -> str:
    metric = attempt.plan.metric
    lines = [f"{label(r.span.name)}: {r.surrogate}" for r in made(trial)]
    lines.append(
        f"{_ms(attempt, trial):.3g} ms, {trial.speedup:.2f}x, {trial.blocks:.2f} blocks replaced"
    )
    lines.append(
        f"drop {shown(metric, trial.scores.drop)}, expected limit "
        f"{shown(metric, trial.forecast.upper)}"
    )
    if attempt.plan.budget.max_drop is not None:
        lines.append(f"chance to certify {trial.forecast.chance:.0%}")
    return "<br>".join(lines)


def _table(attempt: Attempt, trials: Sequence[Trial]) -> Table:
    plan = attempt.plan
    headers = ["replaced", "blocks", "ms", "speed", "drop", "expected limit"]
    rows = [
        [
            "; ".join(f"{r.span.name}: {r.surrogate}" for r in made(trial)),
            f"{trial.blocks:.2f}",
            f"{_ms(attempt, trial):.3g}",
            f"{trial.speedup:.2f}x",
            shown(plan.metric, trial.scores.drop),
            shown(plan.metric, trial.forecast.upper),
        ]
        for trial in trials
    ]
    if plan.budget.max_drop is not None:
        headers.append("chance")
        for row, trial in zip(rows, trials, strict=True):
            row.append(f"{trial.forecast.chance:.0%}")
    if any(trial is attempt.chosen for trial in trials):
        headers.append("")
        for row, trial in zip(rows, trials, strict=True):
            row.append("chosen" if trial is attempt.chosen else "")
    caption = f"Plans that were tried, on {plan.data.select} samples"
    return Table(caption, tuple(headers), tuple(map(tuple, rows)))


def _model_ms(attempt: Attempt) -> float:
    assert attempt.plan.costs is not None, "an attempt has measured them"
    return attempt.plan.costs.model_ms


def _ms(attempt: Attempt, trial: Trial) -> float:
    return _model_ms(attempt) / trial.speedup
