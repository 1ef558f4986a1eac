"""Make the support table: `python -m blockfold.tools.support > docs/support.md`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import click
import torch

from .exporters import EXPORTERS
from .trial import Row, try_subject
from .zoo import ZOO

HEADER = """# Support table

Small networks built from `transformers` configurations with random weights, exported by torch's two
exporters. For each: how many blocks are found (per stream) and how many its configuration has, and
what happens when the first and the middle block of each stream are replaced by a given affine map:
the largest difference between onnxruntime and torch with the same map put in by a hook, at three
sizes of batch and length, relative to the largest output. A dash means that nothing was left in the
file that no output needs.

"""

NOTES = """
Repeat a row with `python -m blockfold.tools.support "NAME"`.

MobileNetV2: counted are the blocks with a residual sum; those that change width or stride are a
run of convolutions, with nothing that leads past them. KV cache: a block makes outputs of the
model, its keys and values, so it is refused as a whole; its second half (norm and MLP) is replaced.
Swin and T5 are built with eager attention: torch cannot decompose its fused attention for them.
"""


def main(names: list[str]) -> None:
    """Print the table for all networks, or for those named."""
    click.echo(HEADER, nl=False)
    packages = ("torch", "transformers", "onnx", "onnxscript")
    click.echo("Made with " + ", ".join(f"{name} {version(name)}" for name in packages) + ".\n")
    click.echo("| network | exporter | blocks | of | replaced | worst difference | left over |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for subject in ZOO:
            if not names or subject.name in names:
                for exporter in EXPORTERS:
                    click.echo(_line(try_subject(subject, exporter, Path(folder))))
    click.echo(NOTES, nl=False)


def _line(row: Row) -> str:
    if row.failure:
        return _cells(row.subject, row.exporter, "", _sum(row.expected), row.failure, "", "")
    refusals = [f"{swap.block}: {swap.refusal}" for swap in row.swaps if swap.refusal]
    errors = [swap.error for swap in row.swaps if swap.error is not None]
    left = [name for swap in row.swaps for name in swap.leftovers]
    return _cells(
        row.subject,
        row.exporter,
        _sum(row.found),
        _sum(row.expected),
        "; ".join([f"{len(errors)} of {len(row.swaps)}", *refusals[:1]]),
        f"{max(errors):.1e}" if errors else "",
        ", ".join(left) or "-",
    )


def _sum(counts: Iterable[int]) -> str:
    return " + ".join(map(str, counts))


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
