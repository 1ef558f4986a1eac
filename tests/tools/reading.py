"""Reading of a report: what a browser would make of its HTML, without one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

LEADING_ELSEWHERE = frozenset(
    ("src", "href", "action", "data", "poster", "srcset", "formaction", "xlink:href")
)
"""Attributes that name something to be fetched or gone to."""

EMPTY = ("meta", "link", "img", "br", "hr", "input", "base")


@dataclass
class Page(HTMLParser):
    """Tags and texts of a page; `tables` counts the rows of each figure's table."""

    path: Path
    tags: list[str] = field(default_factory=list)
    leads: list[str] = field(default_factory=list)
    handlers: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    tables: dict[str, int] = field(default_factory=dict)
    plots: dict[str, Any] = field(default_factory=dict)
    size_bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[tuple[str, str]] = []
        text = self.path.read_text()
        self.feed(text)
        self.close()
        assert self._open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.leads += [f"{tag} {n}={v}" for n, v in given.items() if n in LEADING_ELSEWHERE]
        self.handlers += [name for name in given if name.startswith("on")]
        if tag not in EMPTY:
            self._open.append((tag, given.get("id", "")))
        figures = [name for open_, name in self._open if open_ == "figure"]
        if figures:
            self.tables.setdefault(figures[-1], 0)
            if tag == "tr" and ("details", "") in self._open:
                self.tables[figures[-1]] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data: str) -> None:
        tag, name = self._open[-1] if self._open else ("", "")
        if name == "plots":
            self.plots = json.loads(data)
        if tag not in ("script", "style"):
            self.words += data.split()
        if not (tag == "script" and "plotly.js" in data[:2000]):
            self.size_bytes += len(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)
