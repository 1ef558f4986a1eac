"""A writer that is killed at its first operation, another at its second, and so on to the end.

Run as a script: FOLDER KIND older|none. Every writer has a folder, named by a number, to write in.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from blockfold.ir.staging import staged, write_bytes

SIDE = ["out.plan.json", "out.plan.safetensors"]
NAMES = {"model": ["out.onnx", *SIDE], "model and weights": ["out.onnx", "out.onnx.data", *SIDE]}
ROOM = ".out.onnx.blockfold"
OLD = "older"
"""Marks a folder in which a set was before."""


def old(name: str) -> bytes:
    return f"old {name}".encode()


def new(name: str) -> bytes:
    return f"new {name}".encode()


def fill(folder: Path, names: Sequence[str], make: Callable[[str], bytes]) -> None:
    for name in names:
        write_bytes(folder / name, make(name))


def write(folder: Path, names: Sequence[str], last: int) -> None:
    """Write the new set; die at operation number `last`, as Python's audit counts them."""
    count = 0

    def watch(_event: str, _arguments: object) -> None:
        nonlocal count
        count += 1
        if count == last + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    with staged(folder / "out.onnx") as room:
        fill(room, names, new)


def main(place: Path, kind: str, before: str) -> None:
    names, last, survived = NAMES[kind], 0, False
    while not survived:
        folder = place / str(last)
        folder.mkdir()
        if before == OLD:
            fill(folder, [OLD], old)
            fill(folder, names, old)
        child = os.fork()
        if not child:
            write(folder, names, last)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        survived = status == 0
        assert survived or os.WTERMSIG(status) == signal.SIGKILL, status
        last += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
