"""What a person sees of how alike layers are: units, pairs of layers, the modularity curve."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..calibration.metrics.modularity import LEAST_GAIN, plateaus
from ..passes.score import Redundancy
from ..passes.similarity import Similarity

MOST_LAYERS = 16
"""Whose pairs 80 columns hold."""


def show_similarity(console: Console, found: Similarity, spans: Sequence[Redundancy]) -> None:
    """One stream; `spans` know what follows from moments."""
    console.print(_units(found, spans))
    layers = len(found.cka)
    classes = "" if found.communities is None else f"; Q: classes are {found.communities}"
    _note(
        console,
        f"more redundant: CKA nearer 1, sliced W2, NBL, angle and entropy nearer 0, a gain of Q "
        f"near or below 0{classes}",
    )
    if layers <= MOST_LAYERS:
        console.print(_pairs(found))
    else:
        _note(console, f"CKA of all pairs of the {layers} layers: --json")
    if found.modularity is not None:
        marks = set(plateaus(found.modularity))
        curve = [_short(value) + "*" * (at in marks) for at, value in enumerate(found.modularity)]
        console.print(f"Q by layer: {' '.join(curve)}", markup=False, highlight=False)
        _note(console, f"*: a plateau, less than {LEAST_GAIN} above the layer before")
    _note(
        console,
        f"MSRS {found.msrs:.1f} of {layers * (layers - 1) // 2} pairs of layers "
        f"({found.msrs_per_pair:.2f}), on {found.samples} samples",
    )


def _note(console: Console, text: str) -> None:
    console.print(text, style="dim", markup=False, highlight=False)


def _units(found: Similarity, spans: Sequence[Redundancy]) -> Table:
    """What is known of every unit; of those that change the shape, what needs no moments."""
    moments = {
        span.likeness.name: span
        for span in spans
        if span.likeness is not None and span.span.stream == found.stream
    }
    table = borderless("unit", "CKA", "sliced W2", "gain of Q", "entropy", "angle", "NBL")
    for unit in found.units:
        span = moments.get(unit.name)
        figures = (
            unit.max_sliced_wasserstein,
            unit.modularity_gain,
            unit.activation_entropy,
            None if span is None else span.angular_distance,
            None if span is None else span.nbl_bound,
        )
        cells = ["-" if value is None else f"{value:.3g}" for value in figures]
        table.add_row(Text(unit.name), f"{unit.cka:.3f}", *cells)
    return table


def _pairs(found: Similarity) -> Table:
    """CKA of every two layers, by their place in the stream."""
    table = borderless("CKA", *map(str, range(len(found.cka) - 1)))
    for at, row in enumerate(found.cka):
        if at > 0:
            table.add_row(str(at), *map(_short, row[:at]))
    return table


def _short(value: float) -> str:
    """Two decimals, no digit before the point unless it tells something."""
    text = f"{value + 0.0:.2f}".replace("-0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text[:-1]


def borderless(*headers: str) -> Table:
    """A table of text on the left and figures on the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for at, header in enumerate(headers):
        table.add_column(header, justify="left" if at == 0 else "right", overflow="fold")
    return table
