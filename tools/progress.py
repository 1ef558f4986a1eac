"""Progress of long work on stderr, with time left; silent where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..passes.task import Advance


@contextmanager
def bars(name: str, total: int) -> Iterator[Advance]:
    """A Stage (see passes.task) that draws a bar and leaves its last state standing."""
    if not sys.stderr.isatty():
        yield lambda _steps: None
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=total)
        yield lambda steps: progress.advance(task, steps)
        progress.update(task, completed=total)
