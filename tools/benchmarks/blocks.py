"""Published methods and blockfold on blocks of your choice.

    python -m blockfold.tools.benchmarks.blocks \\
        --model minilm minilm.onnx minilm.npz cosine --blocks 4 --blocks 2-3

Each stretch of blocks of the first stream, counted from 0, is taken out by itself: dropped, and
replaced by rba, replaceme and blockfold, which takes the form of least damage on the select split.
Everything is solved on the fit and select splits; what is shown was scored on the certify split.
Prints Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ...ir.spans import Span, prove
from ...passes.methods import METHODS, PRESETS
from ...passes.recipe import Recipe
from ...passes.surrogates import Wish
from .cases import Case, on_cases, write_json
from .compare import Comparer, comparer
from .findings import Cell
from .paired import damage_by


def _stretches(
    _ctx: click.Context, _param: click.Parameter, values: Sequence[str]
) -> list[tuple[int, int]]:
    try:
        ends = [[int(end) for end in value.split("-")] for value in values]
    except ValueError as error:
        raise click.BadParameter(f"{error}; write 4, or 2-3") from error
    return [(end[0], end[-1]) for end in ends]


def cells_of(one: Comparer, first: int, last: int) -> Iterator[Cell]:
    """All methods on the blocks from the first to the last."""
    span = span_of(one, first, last)
    (rba,) = one.trials.fit_all([Recipe((Wish(span, "affine"),), PRESETS["rba"].healing)])
    trials = {**one.alike([span]), "rba": rba}
    name = f"{first}" if first == last else f"{first}-{last}"
    return one.cells(name, last - first + 1, trials)


def span_of(one: Comparer, first: int, last: int) -> Span:
    """The span of these blocks. UsageError where there is none."""
    stream = one.layout.anatomies[0]
    if not 0 <= first <= last < len(stream.blocks):
        raise click.UsageError(f"--blocks {first}-{last}: there are 0 to {len(stream.blocks) - 1}")
    start, stop = stream.blocks[first].start, stream.blocks[last].stop
    proved = prove(one.task.plain.graph, stream, start, stop, one.layout.observed)
    if not isinstance(proved, Span):
        raise click.UsageError(f"--blocks {first}-{last}: cannot be replaced: {proved.reason}")
    return proved


@click.command()
@on_cases
@click.option(
    "--blocks",
    "stretches",
    multiple=True,
    required=True,
    callback=_stretches,
    metavar="FIRST-LAST",
    help="To take out; repeatable.",
)
def main(
    cases: Sequence[Case], seed: int, target: Path | None, stretches: Sequence[tuple[int, int]]
) -> None:
    """Compare all methods on given blocks."""
    found: list[Cell] = []
    for case in cases:
        with comparer(case, seed) as one:
            whole = damage_by(one.task, one.certify, one.task.model)
            click.echo(f"\n## {case.name}: {whole.unit}, {whole.samples} samples\n")
            click.echo(
                "| blocks | method | damage | 95 % interval | by |\n| --- | --- | --- | --- | --- |"
            )
            for first, last in stretches:
                cells = [*cells_of(one, first, last)]
                for cell in sorted(cells, key=lambda cell: METHODS.index(cell.method)):
                    form = cell.replaced[0].rpartition(": ")[2]
                    click.echo(
                        f"| {cell.table} | {cell.method} | {cell.damage:.4f} "
                        f"| {cell.low:.4f} to {cell.high:.4f} | {form} |"
                    )
                found += cells
    write_json(target, found)


if __name__ == "__main__":
    main()
