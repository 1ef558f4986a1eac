"""The heat map of spans: what every stretch from one unit to a later one would cost and save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.blocks import Anatomy
from ...ir.spans import span_name
from ...passes.costs import CostModel
from ...passes.optimize import Attempt
from ...passes.score import Survey
from ...passes.task import smooth
from ...passes.verify import unit
from .drawing import drawn, label, number, short_labels
from .layers import Matrix, empty, is_blank, square, upper
from .parts import Figure, Section, Table, View

AFFINE_R2 = "affine R²"

LINEAR = ("affine", "conv")
"""The plain maps, whose error is the share of variance that no linear map explains."""


@dataclass(frozen=True)
class Layer:
    """What is known of all spans of a stream by one measure, (first unit, last unit)."""

    name: str
    unit: str
    values: Matrix
    by_magnitude: bool = False


def spans(
    streams: Sequence[Anatomy], survey: Survey | None, attempt: Attempt | None
) -> Section | None:
    """One heat map for every stream, with a switch between measures."""
    figures = []
    for index, stream in enumerate(streams):
        found = {} if survey is None else _by_name(_surveyed(stream, survey))
        if attempt is not None:
            searched = _by_name(_searched(stream, attempt))
            found = searched | found | searched  # first in order, and where both know
        layers = [layer for layer in found.values() if not is_blank(layer.values)]
        if layers:
            figures.append(_figure(stream, layers, f"spans-{index}"))
    if not figures:
        return None
    text = [
        "A cell is the span from the unit on the left to the unit below, both included; the "
        "diagonal holds single units. Empty cells cannot go, or were not looked at."
    ]
    if attempt is not None and attempt.options:
        text.append(
            f"Damage ({smooth(attempt.plan.metric)} at the output), error and time are of the best "
            "surrogate by itself, seen on a few samples; the least promising were not run, their "
            "damage follows from their error."
        )
    if survey is not None and survey.similarities:
        text.append(
            f"Block redundancy (nearer 0: more redundant) and cosine (nearer 1) are of the "
            f"original's rows on {survey.similarities[0].samples} samples."
        )
    return Section("Every span", tuple(text), figures=tuple(figures))


def _by_name(layers: Sequence[Layer]) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


def _searched(stream: Anatomy, attempt: Attempt) -> list[Layer]:
    """What the search knows: of each span the surrogate that damages the output least."""
    options = [o for o in attempt.options if o.wish.span.stream == stream.chain.source]
    if not options or attempt.plan.costs is None:
        return []
    costs = CostModel(attempt.layout.anatomies, attempt.plan.costs)
    size = len(stream.units)
    damage, error, r2, saved = (empty(size) for _ in range(4))
    for option in sorted(options, key=lambda option: -option.damage):
        i, j = option.wish.span.start, option.wish.span.stop - 1
        damage[i][j], error[i][j] = option.damage, option.error
        saved[i][j] = costs.saved_ms(option.wish)
    for option in options:
        if option.wish.form in LINEAR:
            i, j = option.wish.span.start, option.wish.span.stop - 1
            r2[i][j] = max(1.0 - option.error, r2[i][j] or float("-inf"))
    return [
        Layer("damage", unit(smooth(attempt.plan.metric)), damage, by_magnitude=True),
        Layer("error", "share of variance", error, by_magnitude=True),
        Layer("time saved", "ms", saved),
        Layer(AFFINE_R2, "R²", r2),
    ]


def _surveyed(stream: Anatomy, survey: Survey) -> list[Layer]:
    """What the survey knows: of all spans whose ends have one shape, of units and blocks more."""
    found: list[Layer] = []
    for similarity in survey.similarities:
        if similarity.stream != stream.chain.source:
            continue
        rows = similarity.block_redundancy, similarity.cosine
        moved, cosine = (_of_units(stream, similarity.cuts, matrix) for matrix in rows)
        found.append(Layer("block redundancy", "-E|y - x|²", moved, by_magnitude=True))
        found.append(Layer("cosine", "cosine", cosine))
    r2 = empty(len(stream.units))
    for redundancy in survey.spans:
        span = redundancy.span
        if span.stream == stream.chain.source:
            r2[span.start][span.stop - 1] = redundancy.affine_r2
    return [*found, Layer(AFFINE_R2, "R²", r2)]


def _of_units(stream: Anatomy, cuts: Sequence[int], matrix: Matrix) -> Matrix:
    """A matrix of layers as one of units; cuts that were not compared leave gaps."""
    found = empty(len(stream.chain.cuts))
    for row, i in zip(matrix, cuts, strict=True):
        for value, j in zip(row, cuts, strict=True):
            found[i][j] = value
    return upper(found)


def _figure(stream: Anatomy, layers: Sequence[Layer], key: str) -> Figure:
    names = [span_name(stream, at, at + 1) for at in range(len(stream.units))]
    labels = short_labels(names)
    views = []
    for layer in layers:
        hover = f"%{{y}} .. %{{x}}<br>{layer.name} %{{z:.4g}} ({label(layer.unit)})"
        plot = square(layer.values, labels, layer.unit, hover, by_magnitude=layer.by_magnitude)
        plot.update_xaxes(title="last unit")
        plot.update_yaxes(title="first unit")
        views.append(View(layer.name, drawn(plot, 500)))
    rows = tuple(
        (span_name(stream, i, j + 1), *(number(layer.values[i][j]) for layer in layers))
        for i in range(len(names))
        for j in range(i, len(names))
        if layers[0].values[i][j] is not None
    )
    headers = ("span", *(f"{layer.name}, {layer.unit}" for layer in layers))
    caption = f"Spans of the stream from {stream.chain.source}"
    return Figure(key, caption, tuple(views), Table(caption, headers, rows))
