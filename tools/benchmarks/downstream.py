"""What other tools make of an optimized model, beside what they make of the original.

    python -m blockfold.tools.benchmarks.downstream [--model NAME MODEL OPTIMIZED DATA ...]

Each tool is applied to an original and to what blockfold made of it: those given, else the bundled
digits model, which is optimized first. Printed are how far each strays from the model it was given,
on samples held back, and latencies measured in turns. Tools not installed are listed as not tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ...calibration.latency import Profile, take_turns
from ...calibration.runtime import Runner
from ...passes.task import Task, thinned
from .. import api, opening
from ..demo.bundle import DATA, MODEL
from .downstream_tools import TOOLS, Served, Tool

MOST_SAMPLES = 256
"""Samples held back that outputs are compared on."""

ROUNDS = 25


@dataclass(frozen=True)
class Strayed:
    """How far outputs are from others: share of samples of the same class, largest difference as a
    share of the largest output.
    """

    agreement: float
    difference: float

    def __str__(self) -> str:
        return f"{self.agreement:.1%}, {self.difference:.1e}"


@dataclass(frozen=True)
class Row:
    """One tool on one model: how far it strays on original and result, and ratios of latencies.

    `alone`: what the tool gives the original; `both`: tool and blockfold together, over the
    original; `kept`: what blockfold gives where the tool is used anyway. None: not timed.
    """

    tool: str
    original: Strayed
    result: Strayed
    alone: float | None = None
    both: float | None = None
    kept: float | None = None


def outputs(task: Task, served: Served) -> NDArray[np.floating]:
    """The task's output (samples, ...) on some of the samples held back."""
    samples = thinned(task.splits.certify, MOST_SAMPLES)
    batches = task.data.batches(samples, task.batch)
    return np.concatenate([served(batch.feeds)[task.output] for batch in batches])


def strayed(before: NDArray[np.floating], after: NDArray[np.floating]) -> Strayed:
    """How far `after` (samples, classes) is from `before`."""
    same = before.argmax(-1) == after.argmax(-1)
    largest = float(np.abs(before).max()) or 1.0
    difference = np.abs(before.astype(np.float64) - after.astype(np.float64)).max()
    return Strayed(float(same.mean()), float(difference) / largest)


def try_tool(
    tool: Tool, label: str, task: Task, profile: Profile, models: Sequence[Path], folder: Path
) -> Row:
    """Apply a tool to the original and the result, compare, and time where that says something."""
    plain = [Runner(opening.read_model(path), task.runtime) for path in models]
    treated = [
        tool.serve(task, path, folder / f"{index}.{path.name}") for index, path in enumerate(models)
    ]
    on_original, on_result = (
        strayed(outputs(task, before), outputs(task, after))
        for before, after in zip(plain, treated, strict=True)
    )
    if not tool.is_timed:
        return Row(label, on_original, on_result)
    original, _, first, second = take_turns([*plain, *treated], profile, rounds=ROUNDS)
    return Row(
        label,
        on_original,
        on_result,
        first.ratio_to(original)[0],
        second.ratio_to(original)[0],
        second.ratio_to(first)[0],
    )


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def rows(
    task: Task, profile: Profile, models: Sequence[Path], tools: Sequence[Tool]
) -> Iterator[Row | str]:
    """A row for each tool; a line of text where one is missing or fails."""
    for tool in tools:
        found = next((v for name in tool.distributions if (v := installed(name))), None)
        label = f"{tool.name} {found}"
        if found is None:
            yield f"| {tool.name} | not tried: not installed |"
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield try_tool(tool, label, task, profile, models, Path(folder))
            except Exception as error:  # each tool has its own
                yield f"| {label} | fails: {' '.join(str(error).split())[:160]} |"


def show(name: str, task: Task, profile: Profile, models: Sequence[Path]) -> None:
    """Print a table in Markdown."""
    original, result = (Runner(opening.read_model(path), task.runtime) for path in models)
    ours = strayed(outputs(task, original), outputs(task, result))
    before, after = take_turns([original, result], profile, rounds=ROUNDS)
    click.echo(f"\n## {name}\n")
    click.echo(f"blockfold alone: strays {ours}; {after.ratio_to(before)[0]:.2f}x as fast\n")
    heads = "tool", "strays, original", "strays, result", "tool alone", "both", "blockfold after"
    click.echo("| " + " | ".join(heads) + " |")
    click.echo("| --- " * len(heads) + "|")
    for row in rows(task, profile, models, TOOLS):
        if isinstance(row, str):
            click.echo(row)
            continue
        ratios = ["" if r is None else f"{r:.2f}x" for r in (row.alone, row.both, row.kept)]
        cells = [row.tool, str(row.original), str(row.result), *ratios]
        click.echo("| " + " | ".join(cells) + " |")


@click.command()
@click.option(
    "--model",
    "models",
    nargs=4,
    multiple=True,
    metavar="NAME MODEL OPTIMIZED DATA",
    help="A model and what blockfold made of it; repeatable.",
)
@click.option("--threads", default=1, help="Of onnxruntime.")
def main(models: Sequence[tuple[str, str, str, str]], threads: int) -> None:
    """Apply other tools to optimized models; without any to the bundled one, optimized first."""
    with tempfile.TemporaryDirectory() as folder:
        if not models:
            small = Path(folder) / "small.onnx"
            api.optimize_to(small, MODEL, DATA, max_drop=0.02, provider="cpu", threads=threads)
            models = [("digits ViT", str(MODEL), str(small), str(DATA))]
        for name, model, optimized, data in models:
            settings = opening.Settings(provider="cpu", threads=threads)
            with opening.opened_task(opening.read_model(model), data, settings) as task:
                profile = opening.profile_of(task, settings)
                show(name, task, profile, [Path(model), Path(optimized)])


if __name__ == "__main__":
    main()
