"""Folders that are gone in the end, whichever way their process ends.

A folder is held by a lock on a file in it. Who holds it removes it: when closed, when collected, at
exit. Where the process is killed, the kernel lets go of the lock, and the next process that looks
finds a folder that nobody holds, and removes it. Where a system has no such locks (Windows, some
file systems), nothing is taken for dead.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .errors import BadInput

if sys.platform != "win32":
    import fcntl

PREFIX, SUFFIX = "blockfold-", ".scratch"
LOCK = "lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class NoLocks(OSError):
    """The file system cannot tell the living from the dead."""


class Held:
    """A folder that this process holds; `close` removes it and lets go."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._finalizer = weakref.finalize(self, _remove, path, lock, os.getpid())

    def close(self) -> None:
        with undisturbed():
            self._finalizer()


def hold(path: Path) -> Held | None:
    """Hold a folder that is there; None where a living process, or this one, holds it already.

    Raises FileNotFoundError where it has gone, NoLocks where nobody can know, other OSErrors.
    """
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if _locked(lock):
            # another may have removed the folder between the two lines above
            if os.path.samestat(os.fstat(lock), (path / LOCK).stat()):
                return Held(path, lock)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _locked(lock: int) -> bool:
    """Take the lock of an open file, if it is free."""
    if sys.platform == "win32":
        raise NoLocks(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocks(error.errno, error.strerror) from error
        raise
    return True


def _remove(path: Path, lock: int | None, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker leaves its parent's files alone
        shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


class Scratch:
    """A private folder under TMPDIR. Raises BadInput where there is no room for one."""

    def __init__(self) -> None:
        with undisturbed(), storing():
            folder = Path(tempfile.gettempdir())
            _sweep(folder)
            self._held = _fresh(folder)
        self.path = self._held.path

    def close(self) -> None:
        self._held.close()


def _fresh(folder: Path) -> Held:
    while True:
        path = Path(tempfile.mkdtemp(SUFFIX, PREFIX, folder))
        try:
            held = hold(path)
        except NoLocks:
            return Held(path, None)
        except FileNotFoundError:
            continue  # swept by another process before it was held
        if held is not None:
            return held


@cache
def _sweep(folder: Path) -> None:
    """Remove what killed processes of this user have left in the folder; once a process."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):
            left = hold(path) if is_own_folder(path) else None
            if left is not None:
                left.close()


def is_own_folder(path: Path) -> bool:
    """Whether it is a folder of this user, and no link to one."""
    status = path.lstat()
    own = sys.platform == "win32" or status.st_uid == os.getuid()
    return own and stat.S_ISDIR(status.st_mode)


@contextmanager
def storing() -> Iterator[None]:
    """Whatever the disk refuses meanwhile becomes one line about temporary files."""
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or os.environ.get("TMPDIR", "the temporary folder")
        raise BadInput(
            f"cannot write temporary files to {where} ({error.strerror or error}); free space "
            "there, or set TMPDIR to a folder with more"
        ) from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done; it must be short."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)
