"""Runs killed at random: `python -m blockfold.tools.benchmarks.accidents MODEL DATA`.

Every run is a process of its own that writes the same target, and is sent a signal: every other
one at a random time, the others at a random time after the new model has been staged. What is then
found is told: the older set of files, a new one, or, ready to be put in place by whoever comes
next, a set on its way. Anything else is a failure, as is whatever a last undisturbed run does not
clear away.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from ...ir.errors import BlockfoldError
from ...ir.onnx_file import read
from ...passes.optimize import PLAN_KEY
from ...passes.plan import read_plan, tensors_path
from ..results import plan_path

SIGNALS = {"kill": signal.SIGKILL, "ctrl-c": signal.SIGINT}
INTERRUPTED = (130, -signal.SIGINT)  # the latter while Python itself is starting
POLL_SECONDS = 0.002


@dataclass
class Place:
    """Where the runs write, and what a complete run last left there."""

    folder: Path
    command: Sequence[str]
    before: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def target(self) -> Path:
        return self.folder / "out" / "out.onnx"

    @property
    def room(self) -> Path:
        return self.target.with_name(f".{self.target.name}.blockfold")

    def start(self) -> subprocess.Popen[bytes]:
        temporary = self.folder / "tmp"
        for folder in (self.target.parent, temporary):
            folder.mkdir(exist_ok=True)
        words = [*self.command, "-o", str(self.target)]
        environment, nowhere = {**os.environ, "TMPDIR": str(temporary)}, subprocess.DEVNULL
        return subprocess.Popen(words, env=environment, stdout=nowhere, stderr=nowhere)

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
    with place.start() as process:
        while process.poll() is None:
            if not staged and (place.room / "new" / place.target.name).exists():
                staged = time.monotonic() - begun
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise click.ClickException(f"an undisturbed run ends with {process.returncode}")
    return staged, time.monotonic() - begun


def disturb(place: Place, number: signal.Signals, after: float, *, staged: bool) -> int:
    """Start a run and send it a signal so many seconds after its start or its staging."""
    with place.start() as process:
        while staged and process.poll() is None:
            if (place.room / "new" / place.target.name).exists():
                break
            time.sleep(POLL_SECONDS)
        try:
            return process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            return process.wait()


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
        command = [sys.executable, "-m", "blockfold", "optimize", model, "--data", data, *options]
        place = Place(Path(folder), command)
        staged, whole = undisturbed(place)
        first = place.found()
        click.echo(f"undisturbed: {first}, model staged after {staged:.1f} s of {whole:.1f} s")
        left = wrong = 0
        for run in range(runs):
            late = run % 2 == 1
            after = rng.uniform(0, whole - staged if late else whole)
            code = disturb(place, number, after, staged=late)
            state, debris = place.found(), place.debris()
            codes[code] += 1
            found[state] += 1
            left += bool(debris)
            stopped = code not in (0, -number)
            if kind == "ctrl-c":
                stopped = code not in (0, *INTERRUPTED) or bool(debris)
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
