"""Drawing: what all plots have in common. Names come from files and may be hostile or long."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, GREY, RED = "#3b82c4", "#d97b16", "#2f9e6e", "#8a919e", "#d1495b"
"""Tell apart on white, on black, and without red or green."""

COLOURS: Mapping[str, str] = {
    "identity": GREY,
    "folded": GREEN,
    "affine": BLUE,
    "affine + context": "#6a6fd1",
    "affine + folded": "#1f9bb5",
    "affine + folded + context": "#a65fbf",
    "conv": ORANGE,
}
"""By form of surrogate."""

LONGEST_LABEL = 28


def drawn(figure: go.Figure, height: int) -> dict[str, Any]:
    """The figure as plotly.js takes it; the page adds colours of text and ground."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
    )
    figure.update_xaxes(automargin=True, title_standoff=10)
    figure.update_yaxes(automargin=True, title_standoff=10)
    found: dict[str, Any] = json.loads(figure.to_json())
    return found


def label(name: str) -> str:
    """A name as plotly may show it, whose text is markup; of long ones the end tells more."""
    return escape(name if len(name) <= LONGEST_LABEL else f"…{name[1 - LONGEST_LABEL :]}")


def short_labels(names: Sequence[str]) -> list[str]:
    """Names without the dotted parts that all of them begin with; they stay distinct."""
    shared = 0
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += len(parts[0]) + 1
    return distinct(label(name[shared:] if len(names) > 1 else name) for name in names)


def distinct(names: Iterable[str]) -> list[str]:
    """The names, later ones of the same text with a number: an axis takes equals for one."""
    found: dict[str, None] = {}
    for name in names:
        fresh, number = name, 1
        while fresh in found:
            number += 1
            fresh = f"{name} ·{number}"
        found[fresh] = None
    return list(found)


def rounded(value: float | None) -> float | None:
    """Five digits are more than a plot shows; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def number(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, form)
