"""Sections about the plan that was chosen: what it changed, and whether it did as foretold."""

from __future__ import annotations

import plotly.graph_objects as go

from ...passes.facts import Facts
from ...passes.optimize import Attempt
from ...passes.plan import Plan
from ...passes.verify import shown
from ..wording import changes_of
from .drawing import BLUE, GREY, distinct, drawn, label
from .parts import Figure, Section, Table, View


def changes(attempt: Attempt, before: Facts, after: Facts | None) -> Section:
    """Weights, quality and latency, before and after."""
    latency = attempt.plan.latency
    rows = tuple(changes_of(attempt, before, after))
    table = Table("Before and after", ("", "before", "after", "change"), rows)
    text = "FLOPs are of matrix products and convolutions"
    return Section(
        "Before and after",
        (f"{text}; latency is the median, {latency.profile}." if latency else f"{text}.",),
        table,
    )


def foretold(attempt: Attempt) -> Section | None:
    """What was predicted before, against what was measured in the end."""
    plan, chosen = attempt.plan, attempt.chosen
    if plan.verdict is None or chosen is None:
        return None
    rows = []
    for name, predicted, measured in (
        (f"drop of {plan.metric}", chosen.scores.drop, plan.verdict.drop),
        ("limit of the drop, 95 %", chosen.forecast.upper, plan.verdict.bound.upper),
    ):
        rows.append((name, shown(plan.metric, predicted), shown(plan.metric, measured)))
    if plan.latency is not None:
        rows.append(("speed", f"{chosen.speedup:.2f}x", f"{plan.latency.ratio:.2f}x"))
    text = (
        "Predicted on the samples that the plan was fitted and chosen on, measured on those held "
        "back. An error is E |y - map|² as a share of the variance of y, the original's value at "
        "the exit, with everything replaced at once.",
    )
    table = Table("Predicted and measured", ("", "predicted", "measured"), tuple(rows))
    return Section("Predicted against measured", text, table, (_errors(plan),))


def _errors(plan: Plan) -> Figure:
    names = distinct(label(decision.name) for decision in plan.decisions)
    predicted = [decision.predicted_error for decision in plan.decisions]
    rows = tuple(
        (decision.name, f"{decision.predicted_error:.4f}", f"{error:.4f}")
        for decision, error in zip(plan.decisions, plan.exit_errors, strict=True)
    )
    table = Table("Errors at the exits", ("exit of", "predicted", "measured"), rows)
    figure = go.Figure()
    for name, values, colour in (
        ("predicted", predicted, GREY),
        ("measured", plan.exit_errors, BLUE),
    ):
        figure.add_bar(
            orientation="h",
            y=names,
            x=values,
            name=name,
            marker_color=colour,
            hovertemplate=f"%{{y}}<br>{name} %{{x:.4f}}<extra></extra>",
        )
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_xaxes(title="error at the exit, share of variance", rangemode="tozero")
    figure.update_layout(bargap=0.3)
    says = "Predicted and measured errors at the exits of what was replaced"
    return Figure("foretold", says, (View("", drawn(figure, 130 + 44 * len(names))),), table)
