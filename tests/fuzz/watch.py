"""Limits and a watch for one process that reads hostile input.

What is seen while it is armed: files opened outside the input's folder, modules and pickled classes
that a file named, programs started, connections made; memory and time of each input.
"""

from __future__ import annotations

import faulthandler
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .mutate import CANARY

MEMORY_BYTES = 256 << 20
"""What an input of at most 64 kB may make a reader take beyond what it had."""

HANG_SECONDS = 120
"""After so long, whatever the machine does beside, a reader hangs and the process ends itself."""

SLOW_SECONDS = 10.0
"""Of its own time on the processor; an input takes some milliseconds."""

OPENING = ("open", "os.listdir", "os.remove", "os.rename", "os.mkdir", "os.symlink", "os.link")
STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


class Forbidden(Exception):
    """A reader did what no file may make it do."""


class Watch:
    """Sees what readers do to `folder` and elsewhere; raise what was seen with `check`."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.seen: list[str] = []
        self._is_armed = False
        sys.addaudithook(self._hear)
        sys.meta_path.insert(0, self)  # it finds nothing, and sees all

    def limit_memory(self) -> None:
        """From now on the process cannot take more than it has and some."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 2 * MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Raises Forbidden, MemoryError or TimeoutError for what the work inside did."""
        before, begin = _peak_bytes(), time.process_time()
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        self._is_armed, self.seen = True, []
        try:
            yield
        finally:
            self._is_armed = False
            faulthandler.cancel_dump_traceback_later()
        taken, spent = _peak_bytes() - before, time.process_time() - begin
        if self.seen:
            raise Forbidden(self.seen[0])
        if taken > MEMORY_BYTES:
            raise MemoryError(f"{taken >> 20} MiB taken")
        if spent > SLOW_SECONDS:
            raise TimeoutError(f"{spent:.1f} s of processor time")

    def find_spec(self, name: str, *_: object) -> None:
        """As a finder of modules, asked first."""
        if self._is_armed and name == CANARY.partition(":")[0]:
            self.seen.append(f"import of {name}")

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_armed:
            return
        if event == "pickle.find_class" or event in STARTING:
            self.seen.append(f"{event} {arguments[:2]!r:.200}")
        elif event in OPENING and not self._may_open(event, arguments):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _may_open(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path, is_below = arguments[0], event == "os.remove" and arguments[1] >= 0
        if not isinstance(path, str | bytes) or not path or is_below:
            return True  # a descriptor, or a name below one: that was opened before
        text = path.decode(errors="replace") if isinstance(path, bytes) else path
        is_code = text.endswith((".py", ".pyc", ".so")) and event == "open"
        is_code = is_code or (event == "os.listdir" and text in {*sys.path, str(Path.cwd())})
        return is_code or text.startswith(self.folder + "/") or text == self.folder


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
