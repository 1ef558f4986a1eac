"""The tables of a comparison, as Markdown."""

from __future__ import annotations

import click

from ...passes.methods import METHODS, Method
from .findings import Cell, Comparison

TABLES = ("own spans", "same spans")
SMOOTH = "s: mean damage by the smooth metric, which tells more on few samples"


def show(found: Comparison) -> None:
    """Print both tables, their sums, and whether any cell is worse than the best rival."""
    click.echo(
        f"\n## {found.name}: {found.unit}, {found.samples} samples, reached {found.original:.4f}\n"
    )
    click.echo(f"{SMOOTH}\n")
    for table in TABLES:
        cells = {(c.method, c.blocks): c for c in found.cells if c.table == table}
        click.echo(f"{table}:\n\n| blocks | " + " | ".join(METHODS) + " | blockfold - best rival |")
        click.echo("| --- " * (len(METHODS) + 2) + "|")
        for blocks in sorted({blocks for _, blocks in cells}):
            row = [_cell(cells.get((method, blocks))) for method in METHODS]
            ours = cells.get(("blockfold", blocks))
            click.echo(f"| {blocks} | " + " | ".join(row) + f" | {_against(ours)} |")
        click.echo(_sums(cells))
    for cell in found.cells:
        if cell.method == "blockfold":
            click.echo(
                f"- {cell.table}, {cell.blocks}: {'; '.join(cell.replaced)}; {cell.refits} refits"
            )
    _show_predictions(found)
    _show_ablations(found)


def _show_predictions(found: Comparison) -> None:
    click.echo("\nerror at the exit, foretold and measured:\n")
    click.echo("| span | by | rows per column | foretold | measured | ratio |")
    click.echo("| --- " * 6 + "|")
    for one in found.predictions:
        ratio = one.measured / one.predicted if one.predicted > 0 else float("nan")
        click.echo(
            f"| {one.span} | {one.form} | {one.rows_per_column:.0f} | {one.predicted:.4f} "
            f"| {one.measured:.4f} | {ratio:.2f} |"
        )


def _show_ablations(found: Comparison) -> None:
    click.echo("\nwithout one part:\n\n| blocks | without | damage | s |")
    click.echo("| --- " * 4 + "|")
    for one in found.ablations:
        click.echo(f"| {one.blocks} | {one.without} | {one.damage:.4f} | {one.smooth:.4f} |")


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "n/a"
    interval = f"({cell.low:.4f} to {cell.high:.4f})"
    return f"{cell.damage:.4f} {interval}, s {cell.smooth:.4f}, {cell.left:.1%} FLOPs"


def _against(cell: Cell | None) -> str:
    if cell is None or cell.against_best is None:
        return ""
    value, low, high = cell.against_best
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


def _sums(cells: dict[tuple[Method, int], Cell]) -> str:
    """Sums of damages over the depths that both have, as ratios of blockfold's to theirs."""
    parts = []
    rivals: list[Method] = [method for method in METHODS if method != "blockfold"]
    for rival in rivals:
        both = [b for m, b in cells if m == rival and ("blockfold", b) in cells]
        if both:
            ours = sum(cells["blockfold", b].damage for b in both)
            theirs = sum(cells[rival, b].damage for b in both)
            ratio = f" = {ours / theirs:.2f}" if theirs > 0 else ""
            parts.append(f"{rival} {ours:.4f} / {theirs:.4f}{ratio}")
            mine = sum(cells["blockfold", b].smooth for b in both)
            other = sum(cells[rival, b].smooth for b in both)
            parts[-1] += f" (s {mine:.4f} / {other:.4f} = {mine / other:.2f})"
    return f"\nsums, blockfold / rival: {'; '.join(parts)}\n"
