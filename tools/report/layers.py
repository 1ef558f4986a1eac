"""Sections about the layers of the original: which spans could go, how alike layers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from ...ir.blocks import Anatomy
from ...ir.spans import span_name
from ...passes.similarity import Similarity
from .drawing import BLUE, ORANGE, drawn, number, rounded, short_labels
from .parts import Figure, Section, Table, View

Matrix = Sequence[Sequence[float | None]]


DECADES = 4
"""How far below the largest value colours by magnitude reach."""


def square(
    matrix: Matrix,
    labels: Sequence[str],
    scale: str,
    hover: str,
    *,
    by_magnitude: bool = False,
    **limits: float,
) -> go.Figure:
    """A heat map of a matrix; `hover` is plotly's template, `scale` says what the colours are.

    by_magnitude: colours go by the logarithm, for values of which few are far above the others.
    """
    z: Matrix = [[rounded(value) for value in row] for row in matrix]
    bar: dict[str, object] = {
        "title": {"text": scale, "side": "top"},
        "thickness": 12,
        "outlinewidth": 0,
    }
    more: dict[str, object] = dict(limits)
    if by_magnitude:
        sizes = [[None if value is None else abs(value) for value in row] for row in z]
        top = max(value for row in sizes for value in row if value is not None) or 1.0
        least = top / 10**DECADES
        sign = -1.0 if all(value is None or value <= 0 for row in z for value in row) else 1.0
        ticks = range(math.ceil(math.log10(least)), math.floor(math.log10(top)) + 1)
        bar |= {"tickvals": [*ticks], "ticktext": [f"{sign * 10.0**tick:g}" for tick in ticks]}
        more |= {"customdata": z, "reversescale": sign < 0}
        hover = hover.replace("%{z", "%{customdata")
        z = [[None if v is None else math.log10(max(v, least)) for v in row] for row in sizes]
    figure = go.Figure()
    figure.add_heatmap(
        z=z,
        x=labels,
        y=labels,
        colorscale="Viridis",
        colorbar=bar,
        hovertemplate=f"{hover}<extra></extra>",
        hoverongaps=False,
        **more,
    )
    figure.update_xaxes(type="category", showgrid=False, side="bottom")
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return figure


def layer_names(stream: Anatomy, cuts: Sequence[int]) -> list[str]:
    """A name for every layer: the source, then the unit that makes it."""
    return [stream.chain.source if at == 0 else span_name(stream, at - 1, at) for at in cuts]


def likeness(streams: Mapping[str, Anatomy], found: Sequence[Similarity]) -> Section | None:
    """CKA of every two layers."""
    figures = []
    for index, similarity in enumerate(found):
        names = layer_names(streams[similarity.stream], similarity.cuts)
        labels = short_labels(names)
        plot = square(similarity.cka, labels, "CKA", "%{y}<br>%{x}<br>CKA %{z:.3f}", zmin=0, zmax=1)
        plot.update_xaxes(title="layer after")
        plot.update_yaxes(title="layer after")
        rows = tuple(
            (name, *(number(value, ".3f") for value in row))
            for name, row in zip(names, similarity.cka, strict=True)
        )
        caption = f"CKA of the layers of the stream from {similarity.stream}"
        table = Table(caption, ("layer after", *names), rows)
        figures.append(Figure(f"cka-{index}", caption, (View("", drawn(plot, 480)),), table))
    if not figures:
        return None
    text = [
        f"Unbiased linear CKA of values averaged over the positions of a sample, on "
        f"{found[0].samples} samples: 1 where two layers tell samples apart in the same way, up to "
        "a rotation and a scale."
    ]
    for similarity in found:
        pairs = len(similarity.cka) * (len(similarity.cka) - 1) // 2
        text.append(
            f"Of the {pairs} pairs of layers in the stream from {similarity.stream} "
            f"{similarity.msrs:.1f} are alike (MSRS), a share of {similarity.msrs_per_pair:.2f}."
        )
    return Section("How alike the layers are", tuple(text), figures=tuple(figures))


def steps(streams: Mapping[str, Anatomy], found: Sequence[Similarity]) -> Section | None:
    """What every unit does to the stream: the curve of modularity, and three figures per unit."""
    figures = []
    for index, similarity in enumerate(found):
        names = layer_names(streams[similarity.stream], similarity.cuts)
        figures.append(_curve(similarity, names, f"steps-{index}"))
    if not figures:
        return None
    text = [
        f"On {found[0].samples} samples. Sliced W2 is the max-sliced Wasserstein distance between "
        "the ends of a unit: near 0, it hardly moves the distribution."
    ]
    classes = sorted({str(similarity.communities) for similarity in found} - {"None"})
    if classes:
        text.append(
            f"Modularity Q tells how far nearest samples share a class (by {', '.join(classes)}): "
            "a unit that does not raise it adds nothing to telling classes apart."
        )
    return Section("What every unit adds", tuple(text), figures=tuple(figures))


def _curve(similarity: Similarity, names: Sequence[str], key: str) -> Figure:
    labels = short_labels(names)
    unit_labels = short_labels([unit.name for unit in similarity.units])
    views = []
    if similarity.modularity is not None:
        figure = go.Figure()
        figure.add_scatter(
            x=labels,
            y=[rounded(value) for value in similarity.modularity],
            mode="lines+markers",
            line={"color": BLUE},
            hovertemplate="%{x}<br>Q %{y:.4f}<extra></extra>",
        )
        figure.update_xaxes(title="layer after")
        figure.update_yaxes(title="modularity Q")
        views.append(View("modularity", drawn(_by_name(figure), 360)))
    for title, axis, values, colour in (
        ("sliced W2", "sliced W2", [u.max_sliced_wasserstein for u in similarity.units], ORANGE),
        ("CKA of its ends", "CKA", [u.cka for u in similarity.units], BLUE),
    ):
        figure = go.Figure()
        figure.add_bar(
            x=unit_labels,
            y=[rounded(value) for value in values],
            marker_color=colour,
            hovertemplate=f"%{{x}}<br>{axis} %{{y:.4g}}<extra></extra>",
        )
        figure.update_yaxes(title=axis, rangemode="tozero")
        views.append(View(title, drawn(_by_name(figure), 360)))
    rows = tuple(
        (
            unit.name,
            number(unit.cka, ".3f"),
            number(unit.max_sliced_wasserstein),
            number(unit.modularity_gain),
        )
        for unit in similarity.units
    )
    caption = f"Units of the stream from {similarity.stream}"
    table = Table(caption, ("unit", "CKA of its ends", "sliced W2", "gain of Q"), rows)
    return Figure(key, caption, tuple(views), table)


def _by_name(figure: go.Figure) -> go.Figure:
    figure.update_xaxes(type="category", showgrid=False)
    return figure


def upper(matrix: Matrix) -> list[list[float | None]]:
    """What leads from a layer to a later one, by (first unit, last unit)."""
    size = len(matrix)
    return [[matrix[i][j] if j > i else None for j in range(1, size)] for i in range(size - 1)]


def empty(size: int) -> list[list[float | None]]:
    return [[None] * size for _ in range(size)]


def is_blank(matrix: Matrix) -> bool:
    return all(value is None or not math.isfinite(value) for row in matrix for value in row)
