"""The strip of blocks, before and after: what replaced what."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from ...ir.blocks import Anatomy
from ...ir.spans import span_name
from ...passes.optimize import Attempt
from ...passes.plan import decision_of
from ...passes.replacement import Replacement
from .drawing import BLUE, COLOURS, GREY, drawn, label, short_labels
from .parts import Figure, Section, Table, View
from .trials import made, nearest

OUTSIDE = "#b4bac4"
"""Of stems, poolings and heads, which are no blocks."""

Bar = tuple[int, int, str, str, str]
"""Where it starts and stops, its text, its colour, and its text when pointed at."""


def replaced(attempt: Attempt) -> Section | None:
    """Of the plan that was chosen, else of the one that came nearest."""
    trials = nearest(attempt)
    if not trials:
        return None
    done = made(trials[0])
    headers = ("replaced", "by", "blocks", "predicted error")
    decisions = attempt.plan.decisions or [decision_of(replacement) for replacement in done]
    rows = tuple(
        (d.name, d.surrogate, f"{d.blocks:.2f}", f"{d.predicted_error:.4f}") for d in decisions
    )
    text = [] if attempt.chosen else ["No plan was chosen; this is the one that came nearest."]
    text.append(
        "Blocks are grey, the stem, poolings and the head light grey, what stands in for blocks is "
        "coloured. A predicted error is E |y - map|² as a share of the variance of y, the "
        "original's value at the exit, on samples that the map was not solved on."
    )
    if attempt.plan.refits:
        text.append(f"Solved again to make up for it: {len(attempt.plan.refits)} operations.")
    figures = [
        _strip(stream, [r for r in done if r.span.stream == stream.chain.source], f"strip-{number}")
        for number, stream in enumerate(attempt.layout.anatomies)
        if stream.units
    ]
    table = Table("What replaced what", headers, rows)
    return Section("What replaced what", tuple(text), table, tuple(figures))


def _strip(stream: Anatomy, done: Sequence[Replacement], key: str) -> Figure:
    pieces = _pieces(stream)
    names = [span_name(stream, start, stop) for start, stop in pieces]
    before = [
        (start, stop, text, _grey(stream, start), label(name))
        for (start, stop), text, name in zip(pieces, short_labels(names), names, strict=True)
    ]
    gone = {at for r in done for at in range(r.span.start, r.span.stop)}
    after: list[Bar] = []
    for (start, stop), bar in zip(pieces, before, strict=True):
        left = [at for at in range(start, stop) if at not in gone]
        if len(left) == stop - start:
            after.append(bar)
        else:
            after += [
                (at, at + 1, "", _grey(stream, at), label(span_name(stream, at, at + 1)))
                for at in left
            ]
    after += [
        (
            r.span.start,
            r.span.stop,
            r.surrogate,
            COLOURS.get(r.surrogate, BLUE),
            f"{label(r.span.name)}: {r.surrogate}",
        )
        for r in done
    ]
    figure = go.Figure()
    for row, bars in (("after", after), ("before", before)):
        _draw(figure, row, bars)
    figure.update_layout(
        barmode="overlay", bargap=0.2, uniformtext={"mode": "hide", "minsize": 9}, showlegend=False
    )
    figure.update_xaxes(visible=False, range=[0, len(stream.units)])
    figure.update_yaxes(showgrid=False)
    source = stream.chain.source
    fates = tuple(
        (name, _fate(start, stop, done)) for name, (start, stop) in zip(names, pieces, strict=True)
    )
    table = Table(f"Blocks of the stream from {source}", ("block or unit", "afterwards"), fates)
    says = f"The blocks of the stream from {source}, before and after"
    return Figure(key, says, (View("", drawn(figure, 140)),), table)


def _draw(figure: go.Figure, row: str, bars: Sequence[Bar]) -> None:
    figure.add_bar(
        orientation="h",
        y=[row] * len(bars),
        base=[start for start, *_ in bars],
        x=[stop - start for start, stop, *_ in bars],
        text=[text for _, _, text, *_ in bars],
        marker={"color": [colour for *_, colour, _ in bars]},
        hovertext=[hover for *_, hover in bars],
        hoverinfo="text",
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        insidetextfont={"color": "#ffffff"},
    )


def _grey(stream: Anatomy, unit: int) -> str:
    return OUTSIDE if stream.block_of(unit) is None else GREY


def _pieces(stream: Anatomy) -> list[tuple[int, int]]:
    """Start and stop of every block, and of every unit outside of them, in order."""
    outside = [unit.start for unit in stream.units if stream.block_of(unit.start) is None]
    pieces = [(block.start, block.stop) for block in stream.blocks]
    return sorted([*pieces, *((at, at + 1) for at in outside)])


def _fate(start: int, stop: int, done: Sequence[Replacement]) -> str:
    """What becomes of the units from `start` to `stop`."""
    found = [
        f"{r.surrogate} for {r.span.name}"
        for r in done
        if r.span.start < stop and r.span.stop > start
    ]
    return "; ".join(found) or "stays"
