"""Files that belong together, written beside their target and put in place together.

Beside OUT stands a folder `.OUT.blockfold` while a run is at it. Files are made in `new`; once all
are whole and on the disk it is renamed to `ready`, and from that moment they are the result: should
the process be killed while it puts them in place, whoever holds the folder next goes on with that.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput
from .scratch import Held, NoLocks, hold, is_own_folder, undisturbed

NEW, READY = "new", "ready"
DATA_SUFFIX = ".data"
"""OUT.onnx keeps weights that are not in it in OUT.onnx.data."""


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder for `target` and its side files; on success they are put in place, else gone.

    Only one run at a time has it. Side files go first and the one named like `target` last, so that
    it never stands without them. Raises BadInput, before the work inside begins, where the target's
    folder cannot be written or another run is writing the same target.
    """
    if target.is_dir():
        raise BadInput(f"{target}: is a folder; give the name of a file")
    room: Held | None = None
    try:
        with undisturbed():
            room = _entered(target)
        new = room.path / NEW
        yield new
        names = sorted(file.name for file in new.iterdir())
        for name in names:
            if (target.parent / name).is_dir():
                raise BadInput(f"{target.parent / name}: is a folder, in the way; move it")
        try:
            for name in names:
                _settle(new / name)
            with undisturbed():
                new.rename(room.path / READY)
                _put_in_place(room.path / READY, target)
        except OSError as error:
            raise unwritable(target, error) from error
    finally:
        if room is not None:
            room.close()


def _entered(target: Path) -> Held:
    """The room beside the target, held and cleared; what a killed run had ready is put in place."""
    path = target.with_name(f".{target.name}.blockfold")
    try:
        while True:
            is_first = _made(path)
            if not is_own_folder(path):
                raise BadInput(f"{path}: is in the way, and no folder of yours; move it")
            try:
                room = hold(path)
            except NoLocks:
                if not is_first:
                    raise BadInput(
                        f"{path}: left by a run that was killed, or another run is writing "
                        f"{target.name}; remove that folder if none is"
                    ) from None
                room = Held(path, None)
            except FileNotFoundError:
                continue  # its holder has just removed it
            break
        if room is None:
            raise BadInput(
                f"{target}: another run is writing it; wait until that is done, or choose another "
                "place"
            )
        try:
            if (path / READY).is_dir():
                _put_in_place(path / READY, target)
            shutil.rmtree(path / NEW, ignore_errors=True)
            (path / NEW).mkdir()
        except BaseException:
            room.close()
            raise
    except OSError as error:
        raise unwritable(target, error) from error
    return room


def _made(path: Path) -> bool:
    """Make a folder; False where it is there already."""
    try:
        path.mkdir(0o700)
    except FileExistsError:
        return False
    return True


def _put_in_place(ready: Path, target: Path) -> None:
    """Move all files of `ready` beside the target, itself last.

    Weights in a file of their own must not come under an older model's graph, which goes first.
    """
    files = sorted(ready.iterdir(), key=lambda file: (file.name == target.name, file.name))
    if any(file.name == target.name + DATA_SUFFIX for file in files):
        target.unlink(missing_ok=True)
    for file in files:
        file.replace(target.parent / file.name)
    ready.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file. Raises BadInput where the disk will not take it."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise unwritable(path, error) from error


def _settle(path: Path) -> None:
    """Wait until a file is on the disk; only now do some file systems find it full."""
    with path.open("rb" if sys.platform != "win32" else "r+b") as file:
        os.fsync(file.fileno())


def unwritable(path: Path, error: OSError) -> BadInput:
    why = error.strerror or error
    return BadInput(f"{path}: cannot write there: {why}; choose another place")
