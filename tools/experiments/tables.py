"""Tables of experiments, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Its lines, and an empty one."""
    yield f"| {' | '.join(headers)} |"
    yield f"|{' --- |' * len(headers)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean over seeds and, in parentheses, their standard deviation."""
    return f"{np.mean(values):.{digits}f} ({np.std(values, ddof=1):.{digits}f})"


def each(values: Sequence[float], digits: int = 2) -> str:
    """The values of all seeds."""
    return ", ".join(f"{value:.{digits}f}" for value in values)
