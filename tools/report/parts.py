"""Parts of a report: values to show, nothing of how they are drawn on the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mood = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; the first column names the row."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class View:
    """One drawing: `plot` is {"data": ..., "layout": ...} as plotly.js takes it."""

    label: str
    plot: Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """Drawings of one thing, switched between by their labels, and the numbers they show.

    `key` names it in the page; `says` tells those who cannot see it what is drawn.
    """

    key: str
    says: str
    views: tuple[View, ...]
    table: Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order: text, table, figures, commands."""

    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    figures: tuple[Figure, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """A number to see first: `value` large, `note` small below it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Document:
    """A whole report; the verdict comes first, and where it is bad, what may be done."""

    title: str
    verdict: str
    mood: Mood
    summary: tuple[str, ...]
    tiles: tuple[Tile, ...]
    warnings: tuple[str, ...]
    advice: tuple[str, ...]
    sections: tuple[Section, ...]
