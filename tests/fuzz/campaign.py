"""Feed damaged files to a target in processes of their own, and tell what went wrong.

A process that dies or hangs leaves the input it had; another goes on behind it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from blockfold.ir.errors import BlockfoldError

from .targets import TARGETS, Target
from .watch import Watch

OURS = str(Path(__file__).parents[2])


@dataclass
class Report:
    """Inputs fed, how many of these were taken and refused; findings by kind and place."""

    inputs: int = 0
    taken: int = 0
    refused: int = 0
    findings: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, found: str, content: bytes) -> None:
        self.findings.setdefault(found.partition(": ")[0], (found, content))


def input_of(target: Target, seed: int, number: int, seeds: list[bytes]) -> bytes:
    """The input of that number: the same in every run."""
    rng = Random(f"{target.name}/{seed}/{number}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of names that stand twice
        return target.damage(rng.choice(seeds), rng)


def blamed(error: BaseException) -> str:
    """An error by kind and by the deepest line of ours: one for each fault."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f.filename.startswith(OURS) and "/tests/" not in f.filename]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "watch"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:120]}"


def _is_of_parser(error: BaseException) -> bool:
    """Python's parser of literals calls its own limit of depth a lack of memory."""
    return traceback.extract_tb(error.__traceback__)[-1].name == "parse"


def feed(target: Target, content: bytes, watch: Watch, folder: Path) -> str | None:
    """What went wrong with one input. None where it was taken, "" where it was refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)  # onnx's, of keys it does not know
            with watch.armed():
                target.feed(content, folder)
    except BlockfoldError as error:
        hidden = error.__cause__
        if isinstance(hidden, MemoryError | Warning) and not _is_of_parser(hidden):
            return blamed(hidden)
        return "" if "\n" not in str(error) else f"more than one line: {error}"
    except BaseException as error:  # what any other kind means is for the reader of the report
        return blamed(error)
    return None


def work(name: str, seed: int, numbers: range, room: Path) -> None:
    """The child: prints a line for each finding, and counts in the end."""
    target = TARGETS[name]
    folder, seeds = room / "in", target.seeds()
    folder.mkdir(exist_ok=True)
    tempfile.tempdir = str(folder)
    watch = Watch(folder)
    for content in seeds:  # what is imported on the way is imported before limits are set
        feed(target, content, watch, folder)
    watch.limit_memory()
    counts: Counter[str] = Counter()
    for number in numbers:
        content = input_of(target, seed, number, seeds)
        (room / "current").write_text(str(number))
        found = feed(target, content, watch, folder)
        counts["inputs"] += 1
        counts["taken"] += found is None
        counts["refused"] += found == ""
        if found:
            print(json.dumps({"number": number, "found": found}), flush=True)  # noqa: T201
    print(json.dumps({"counts": counts}), flush=True)  # noqa: T201


def campaign(name: str, runs: int, seed: int = 0, first: int = 0) -> Report:
    """Feed `runs` inputs from number `first` on; findings of one kind are kept once."""
    report, target = Report(), TARGETS[name]
    seeds, stop = target.seeds(), first + runs
    while first < stop:
        with tempfile.TemporaryDirectory(prefix="blockfold-fuzz-") as folder:
            room = Path(folder)
            words = [name, str(seed), str(first), str(stop), folder]
            child = subprocess.run(
                [sys.executable, "-m", "blockfold.tests.fuzz", "--child", *words],
                capture_output=True,
                text=True,
                check=False,
            )
            lines = list(_documents(child.stdout))
            for line in lines:
                if "found" in line:
                    content = input_of(target, seed, line["number"], seeds)
                    report.add(line["found"], content)
            if lines and "counts" in lines[-1]:
                for key, count in lines[-1]["counts"].items():
                    setattr(report, key, getattr(report, key) + count)
                return report
            current = room / "current"
            at = int(current.read_text()) if current.exists() else first
            last = " ".join(child.stderr.splitlines()[:6])
            said = f"the process ended with {child.returncode}: at input {at}, {last[:400]}"
            report.add(said, input_of(target, seed, at, seeds))
            report.inputs += at + 1 - first
            first = at + 1
    return report


def _documents(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
