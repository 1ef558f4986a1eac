"""What a benchmark's command line names: models, their data, and what they are judged by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ...passes.task import Task
from .. import opening

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Command = TypeVar("Command", bound=Callable[..., Any])


class Case(NamedTuple):
    """A model to measure on: paths as of `blockfold optimize`, and the metric."""

    name: str
    model: str
    data: str
    metric: str

    def settings(self, seed: int, threads: int = 0) -> opening.Settings:
        return opening.Settings(metric=self.metric, seed=seed, threads=threads)

    @contextmanager
    def opened(self, settings: opening.Settings) -> Iterator[Task]:
        model = opening.read_model(self.model)
        with opening.opened_task(model, self.data, settings) as task:
            yield task


def _cases(
    _ctx: click.Context, _param: click.Parameter, values: Sequence[tuple[str, str, str, str]]
) -> list[Case]:
    return [Case(*value) for value in values]


def on_cases(command: Command) -> Command:
    """Adds the options --model, repeatable, as `cases`; --seed; and --json as `target`."""
    for option in (
        click.option("--json", "target", type=Path, help="Also write all figures here."),
        click.option("--seed", default=0, help="Of the split."),
        click.option(
            "--model",
            "cases",
            nargs=4,
            multiple=True,
            required=True,
            callback=_cases,
            metavar="NAME MODEL DATA METRIC",
            help="A model to measure on; repeatable.",
        ),
    ):
        command = option(command)
    return command


def write_json(target: Path | None, found: Sequence[DataclassInstance]) -> None:
    """All figures as one list, where a target was given."""
    if target is not None:
        target.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
