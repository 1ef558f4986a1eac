"""The table of a comparison with peers, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

import click

from .peer_findings import Figures, Peers, Row
from .peer_methods import ORIGINAL, PEERS

HEADS = "blocks", "parameters", "FLOPs", "bytes", "latency", "lost", "time", "memory"
KEY = (
    "parameters, FLOPs, bytes: share left; latency: times as fast, 10th to 90th percentile; lost: "
    "with 95 % interval; processor time and memory of the method itself: in plain passes over all "
    "the data, and by the peak of one"
)


def show(found: Peers) -> None:
    """Print the table, whether speed-ups multiply, and what is behind the rows."""
    click.echo(f"\n## {found.name}: {found.remove} blocks, {found.unit}\n")
    click.echo(f"{found.samples} samples, the original reaches {found.original:.4f}; {KEY}\n")
    click.echo(f"| method | {' | '.join(HEADS)} |")
    click.echo("| --- " * (len(HEADS) + 1) + "|")
    for row in found.rows:
        click.echo(f"| {row.method} | {' | '.join(_cells(row))} |")
    click.echo()
    for line in (*_stacked(found), *_notes(found)):
        click.echo(f"- {line}")


def _cells(row: Row) -> list[str]:
    figures = row.figures
    if figures is None:
        return ["n/a"] * len(HEADS)
    ratio, low, high = figures.latency
    cells = [
        f"{row.blocks:.2f}".rstrip("0").rstrip("."),
        f"{figures.parameters:.1%}",
        f"{figures.flops:.1%}",
        f"{figures.size_bytes:.1%}",
        f"{ratio:.2f}x ({low:.2f} to {high:.2f})",
        f"{figures.damage:.4f} ({figures.interval[0]:.4f} to {figures.interval[1]:.4f})",
        f"{row.passes:.1f}",
        f"{row.peak_ratio:.2f}x",
    ]
    if row.method == ORIGINAL:
        cells[4:] = ["1.00x", "0", "", ""]
    return cells


def _stacked(found: Peers) -> Iterator[str]:
    """Of every row made upon another by a method that has a row of its own: does speed multiply?"""
    known = {row.method: row.figures for row in found.rows}
    for method, peer in PEERS.items():
        alone = next((m for m, p in PEERS.items() if p.run == peer.run and not p.upon), None)
        if peer.upon is None or alone is None:
            continue
        parts: list[Figures | None] = [known.get(name) for name in (peer.upon, alone, method)]
        if None not in parts:
            first, second, both = (f.latency[0] for f in parts if f is not None)
            yield (
                f"{method}: {peer.upon} {first:.2f}x times {alone} {second:.2f}x would be "
                f"{first * second:.2f}x; measured {both:.2f}x"
            )


def _notes(found: Peers) -> Iterator[str]:
    for row in found.rows:
        if row.why_not is not None:
            yield f"{row.method}: {row.why_not}"
        elif row.replaced and PEERS[row.method].upon is None:
            yield f"{row.method}: {'; '.join(row.replaced)}"
