"""python -m blockfold.tests.fuzz TARGET [--runs N] [--seed S] [--guided]: fuzz a reader of files.

Findings are printed, and their inputs kept in FOLDER. `--guided` lets atheris, where it is
installed, choose what to damage by what code is reached; the damage done is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from types import ModuleType

from .campaign import campaign, feed, work
from .targets import TARGETS
from .watch import Watch


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        name, seed, first, stop, folder = sys.argv[2:]
        work(name, int(seed), range(int(first), int(stop)), Path(folder))
        return
    parser = argparse.ArgumentParser(prog="python -m blockfold.tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--guided", action="store_true")
    given = parser.parse_args()
    if given.guided:
        guided(given.target, given.runs, given.seed, given.folder)
        return
    begin = time.monotonic()
    report = campaign(given.target, given.runs, given.seed)
    print(  # noqa: T201
        f"{given.target}: {report.inputs} inputs in {time.monotonic() - begin:.0f} s, "
        f"{report.taken} taken, {report.refused} refused, {len(report.findings)} findings"
    )
    for found, content in report.findings.values():
        print(f"  {found}\n    {keep(given.folder, given.target, content)}")  # noqa: T201
    sys.exit(bool(report.findings))


def keep(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    return path


def is_ours(module: ModuleType) -> bool:
    name = module.__name__
    return name.startswith("blockfold.") and not name.startswith("blockfold.tests")


def guided(name: str, runs: int, seed: int, kept: Path) -> None:
    """One process, led by coverage of our own code; it ends at `runs` inputs."""
    import atheris

    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="blockfold-fuzz-") as room:
        folder, corpus = Path(room, "in"), Path(room, "corpus")
        folder.mkdir()
        corpus.mkdir()
        for content in target.seeds():
            keep(corpus, name, content)
        watch, known = Watch(folder), set[str]()
        tempfile.tempdir = str(folder)

        def damage(content: bytes, most: int, seed: int) -> bytes:
            try:
                return target.damage(content, Random(seed))[:most]
            except Exception:  # an input that no longer parses is damaged no further
                return content

        def one(content: bytes) -> None:
            found = feed(target, content, watch, folder)
            if found and found not in known:
                known.add(found)
                print(f"  {found}\n    {keep(kept, name, content)}", flush=True)  # noqa: T201

        for module in [m for m in sys.modules.values() if is_ours(m)]:
            for function in vars(module).values():
                if inspect.isfunction(function) and function.__module__ == module.__name__:
                    atheris.instrument_func(function)
        arguments = [f"-runs={runs}", f"-seed={seed + 1}", "-max_len=65536", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *arguments, str(corpus)], one, custom_mutator=damage)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
