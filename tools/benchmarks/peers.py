"""At one budget, what do I get from whom, and at what price?

    python -m blockfold.tools.benchmarks.peers --remove 2 --json peers.json \\
        --model kwt1 kwt1.onnx kwt1.npz accuracy --model minilm m.onnx m.npz cosine

Every method of peer_methods.py removes so many blocks, or does what it does; tools that remove none
stand beside them, and 8-bit quantization of the original and of blockfold's result. Each runs in a
process of its own, where its processor time and its peak of memory are set against plain passes
over all the data; all results are then timed in turns in one process, and judged on the certify
split, which nothing was chosen on. Prints Markdown.
"""

from __future__ import annotations

import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from ...calibration.latency import take_turns
from ...calibration.runtime import Runner
from ...ir.errors import BlockfoldError
from ...ir.onnx_file import OnnxModel, read, write
from ...passes.facts import Facts
from ...passes.task import Reference, Task
from .. import opening
from .cases import Case, on_cases, write_json
from .meters import peak_bytes, plain_pass
from .paired import damage_by
from .peer_findings import Figures, Peers, Row
from .peer_methods import ORIGINAL, PEERS, Given
from .peer_tables import show

ROUNDS, ROUND_SECONDS = 200, 0.01
"""Short turns: all models meet the same moment of a busy machine."""

WARM_PASSES = 2
"""Plain passes made before a method is timed; the faster counts."""


@dataclass(frozen=True)
class Job:
    """One method on one model: what a process of its own is told."""

    method: str
    case: Case
    settings: opening.Settings
    remove: int
    target: Path


@dataclass(frozen=True)
class Attempt:
    """What came of a job: a model at its target, or why there is none."""

    why_not: str | None
    blocks: float = 0.0
    replaced: tuple[str, ...] = ()
    passes: float = 0.0
    peak_ratio: float = 1.0

    def upon(self, before: Attempt) -> Attempt:
        """This one, begun on what another made: times add up, the higher peak counts."""
        return Attempt(
            before.why_not or self.why_not,
            before.blocks,
            before.replaced,
            before.passes + self.passes,
            max(before.peak_ratio, self.peak_ratio),
        )


def attempt(job: Job) -> Attempt:
    """Run a method and weigh it. To be the only work of its process, for the peak's sake."""
    peer = PEERS[job.method]
    try:
        for package in peer.packages:
            importlib.import_module(package)
    except ImportError as error:
        return Attempt(f"not installed: {error.name}")
    with job.case.opened(job.settings) as task:
        one = min(plain_pass(task, time.process_time) for _ in range(WARM_PASSES))
        plain_bytes = peak_bytes()
        profile = opening.profile_of(task, job.settings)
        begin = time.process_time()
        try:
            made = peer.run(Given(task, job.remove, profile))
        except BlockfoldError as error:
            return Attempt(str(error))
        except Exception as error:
            if not peer.packages:
                raise
            return Attempt(f"it fails with {type(error).__name__}: {error}")
        seconds, peak = time.process_time() - begin, peak_bytes()
        write(made.model, job.target)
        return Attempt(None, made.blocks, tuple(made.replaced), seconds / one, peak / plain_bytes)


def attempt_all(
    case: Case, settings: opening.Settings, remove: int, folder: Path
) -> dict[str, Attempt]:
    """Every method, each in a fresh process; what it made lies in the folder under its name."""
    fresh = multiprocessing.get_context("spawn")
    done: dict[str, Attempt] = {}
    for method, peer in PEERS.items():
        start = case
        if peer.upon is not None:
            if done[peer.upon].why_not is not None:
                done[method] = done[peer.upon]
                continue
            start = case._replace(model=str(_file(folder, peer.upon)))
        job = Job(method, start, settings, remove, _file(folder, method))
        with ProcessPoolExecutor(1, mp_context=fresh) as alone:
            found = alone.submit(attempt, job).result()
        done[method] = found if peer.upon is None else found.upon(done[peer.upon])
    return done


def _file(folder: Path, method: str) -> Path:
    return folder / f"{method}.onnx"


def compare(case: Case, settings: opening.Settings, remove: int) -> Peers:
    """All rows of one model."""
    with tempfile.TemporaryDirectory(prefix="blockfold-") as name, case.opened(settings) as task:
        done = attempt_all(case, settings, remove, Path(name))
        models = {
            method: read(_file(Path(name), method))
            for method, found in done.items()
            if found.why_not is None
        }
        figures, reached, unit = _measured(task, settings, models)
        rows = [
            Row(m, a.why_not, a.blocks, a.replaced, a.passes, a.peak_ratio, figures.get(m))
            for m, a in done.items()
        ]
        return Peers(case.name, unit, len(task.splits.certify), reached, remove, rows)


def _measured(
    task: Task, settings: opening.Settings, models: Mapping[str, OnnxModel]
) -> tuple[dict[str, Figures], float, str]:
    """The figures of every model, what the original reached, and the unit of damages."""
    profile = opening.profile_of(task, settings)
    runners = [Runner(model, task.runtime) for model in models.values()]
    timings = dict(
        zip(
            models,
            take_turns(runners, profile, rounds=ROUNDS, round_seconds=ROUND_SECONDS),
            strict=True,
        )
    )
    with Reference(task, task.splits.certify, "original on certify") as reference:
        damages = {m: damage_by(task, reference, model) for m, model in models.items()}
    facts = {m: Facts.of(model, task.runtime, profile) for m, model in models.items()}
    before = facts[ORIGINAL]
    found = {
        method: Figures(
            facts[method].parameters / before.parameters,
            facts[method].flops / before.flops,
            facts[method].size_bytes / before.size_bytes,
            timings[method].ratio_to(timings[ORIGINAL]),
            damages[method].value,
            damages[method].interval,
            damages[method].reached,
        )
        for method in models
    }
    return found, damages[ORIGINAL].reached, damages[ORIGINAL].unit


@click.command()
@click.option("--remove", type=click.IntRange(1), default=2, show_default=True, help="Blocks.")
@click.option("--threads", type=click.IntRange(0), default=0, help="As of optimize.")
@on_cases
def main(cases: Sequence[Case], remove: int, threads: int, seed: int, target: Path | None) -> None:
    """Compare published methods, other tools and blockfold at one budget."""
    found = []
    for case in cases:
        found.append(compare(case, case.settings(seed, threads), remove))
        show(found[-1])
    write_json(target, found)


if __name__ == "__main__":
    main()
