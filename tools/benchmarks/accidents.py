"""Runs killed at random: `python -m blockfold.tools.benchmarks.accidents MODEL DATA`.

Every run is a process of its own (forked from one that has imported everything, to be quick) that
writes the same target, and is sent a signal: every other
one at a random time, the others at a random time after the new model has been staged. What is then
found is told: the older set of files, a new one, or, ready to be put in place by whoever comes
next, a set on its way. Anything else is a failure, as is whatever a last undisturbed run does not
clear away.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import click

from ...ir.errors import BlockfoldError
from ...ir.onnx_file import read
from ...passes.optimize import PLAN_KEY
from ...passes.plan import read_plan, tensors_path
from .. import cli
from ..results import plan_path

SIGNALS = {"kill": signal.SIGKILL, "ctrl-c": signal.SIGINT}
INTERRUPTED = 130
POLL_SECONDS = 0.002
STARTING_SECONDS = 0.05
"""No signal comes earlier: until then multiprocessing may still be at work."""


@dataclass
class Place:
    """Where the runs write, and what a complete run last left there."""

    folder: Path
    words: Sequence[str]
    before: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        return self.folder / "out" / "out.onnx"

    @property
    def room(self) -> Path:
        return self.target.with_name(f".{self.target.name}.blockfold")

    def start(self) -> ForkServerProcess:
        temporary = self.folder / "tmp"
        for folder in (self.target.parent, temporary):
            folder.mkdir(exist_ok=True)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([cli.__name__, "onnxruntime"])
        words = [*self.words, "-o", str(self.target)]
        process = context.Process(target=run, args=(words, str(temporary)))
        process.start()
        return process

    @property
    def is_staged(self) -> bool:
        return (self.room / "new" / self.target.name).exists()

    def found(self) -> str:
        """What the files at the target are: old, new, on the way, absent, or wrong."""
        files = {path.name: path.read_bytes() for path in self.target.parent.glob("out.*")}
        if files == self.before:
            return "old" if files else "absent"
        if is_whole(self.target):
            self.before = files
            return "new"
        return "on the way" if (self.room / "ready").is_dir() else "WRONG"

    def debris(self) -> list[str]:
        """What else lies there."""
        hidden = [path.name for path in self.target.parent.glob(".*")]
        return hidden + [path.name for path in (self.folder / "tmp").iterdir()]


def run(words: Sequence[str], temporary: str) -> None:
    """One run of the command line, in a process of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    tempfile.tempdir = temporary
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    sys.argv = ["blockfold", *words]
    cli.main()


def is_whole(target: Path) -> bool:
    """Whether model, plan and tensors are there and belong together."""
    try:
        model = read(target)
        plan, _ = read_plan(plan_path(target))
    except BlockfoldError:
        return False
    made_by = {entry.key: entry.value for entry in model.proto.metadata_props}.get(PLAN_KEY)
    return made_by == plan.sha256 and tensors_path(plan_path(target)).exists()


def undisturbed(place: Place) -> tuple[float, float]:
    """Let one run finish; seconds until its model is staged, and until it ends."""
    begun, staged = time.monotonic(), 0.0
    process = place.start()
    while process.is_alive():
        if not staged and place.is_staged:
            staged = time.monotonic() - begun
        time.sleep(POLL_SECONDS)
    if process.exitcode:
        raise click.ClickException(f"an undisturbed run ends with {process.exitcode}")
    return staged, time.monotonic() - begun


def disturb(place: Place, number: signal.Signals, after: float, *, staged: bool) -> int:
    """Start a run and send it a signal so many seconds after its start or its staging."""
    process = place.start()
    while staged and process.is_alive() and not place.is_staged:
        time.sleep(POLL_SECONDS)
    process.join(after)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join()
    assert process.exitcode is not None
    return process.exitcode


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, resolve_path=True))
@click.argument("data", type=click.Path(exists=True, resolve_path=True))
@click.option("--runs", default=200, show_default=True)
@click.option("--signal", "kind", type=click.Choice(list(SIGNALS)), default="kill")
@click.option("--seed", default=0, show_default=True)
@click.option("--option", "options", multiple=True, help="Of `optimize`, as --option=--remove=1.")
def main(model: str, data: str, runs: int, kind: str, seed: int, options: tuple[str, ...]) -> None:
    rng, number = random.Random(seed), SIGNALS[kind]
    found: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), ["optimize", model, "--data", data, *options])
        undisturbed(place)  # the first waits for the imports
        staged, whole = undisturbed(place)
        first = place.found()
        click.echo(f"undisturbed: {first}, model staged after {staged:.1f} s of {whole:.1f} s")
        left = wrong = 0
        for run in range(runs):
            late = run % 2 == 1
            after = rng.uniform(0, whole - staged) if late else rng.uniform(STARTING_SECONDS, whole)
            code = disturb(place, number, after, staged=late)
            state, debris = place.found(), place.debris()
            codes[code] += 1
            found[state] += 1
            left += bool(debris)
            stopped = code not in (0, -number)
            if kind == "ctrl-c":
                stopped = code not in (0, INTERRUPTED) or bool(debris)
            if state in ("WRONG", "absent") or stopped:
                wrong += 1
                click.echo(f"run {run}, {after:.3f} s, late {late}: {code}, {state}, {debris}")
        undisturbed(place)
        last, debris = place.found(), place.debris()
        wrong += last != "new" or bool(debris)
        states = ", ".join(f"{count} {state}" for state, count in sorted(found.items()))
        ends = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
        click.echo(f"{runs} runs, {kind}: found {states}; exit codes {ends}")
        click.echo(f"something left behind after {left}; after one more run: {debris or 'nothing'}")
        click.echo(f"failures: {wrong}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
