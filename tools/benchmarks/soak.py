"""Many optimizations in one process: `python -m blockfold.tools.benchmarks.soak MODEL DATA`.

Prints, every few runs, the process's memory, open files and temporary files. None of them should
grow once the first runs have filled what onnxruntime and the allocator keep. Linux only.
"""

from __future__ import annotations

import gc
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

from .. import api

EVERY = 10
MIB = 2**20


@dataclass(frozen=True)
class Held:
    """What a process holds, and how many files lie in a temporary folder."""

    memory_bytes: int
    handles: int
    files: int

    @classmethod
    def now(cls, temporary: Path) -> Held:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        handles = len(list(Path("/proc/self/fd").iterdir()))
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE"), handles, sum(1 for _ in temporary.rglob("*"))
        )


def soak(model: str, data: str, runs: int, temporary: Path, max_drop: float) -> list[Held]:
    """What is held after every run; the first entry is after one run that is not counted."""
    target = temporary / "out.onnx"
    found = []
    for _ in range(runs + 1):
        api.optimize_to(target, model, data, max_drop=max_drop, provider="cpu", threads=1)
        found.append(Held.now(temporary))
    return found


@click.command(help=__doc__)
@click.argument("model")
@click.argument("data")
@click.option("--runs", default=100, show_default=True)
@click.option("--max-drop", default=0.05, show_default=True)
def main(model: str, data: str, runs: int, max_drop: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        found = soak(model, data, runs, Path(folder), max_drop)
    click.echo("| runs | memory MiB | open files | temporary files |")
    click.echo("| --- | --- | --- | --- |")
    for at in range(0, runs + 1, EVERY):
        held = found[at]
        click.echo(f"| {at} | {held.memory_bytes / MIB:.1f} | {held.handles} | {held.files} |")


if __name__ == "__main__":
    main()
