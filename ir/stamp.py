"""Whether the files that were read are still the ones that lie there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import BadInput


@dataclass(frozen=True)
class Stamp:
    """What the file system says of a file; any write changes it. Taken before the file is read."""

    path: Path
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Raises OSError."""
        found = path.stat()
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns)


def require_unchanged(stamps: Iterable[Stamp]) -> None:
    """BadInput where a file is no longer the one that was read."""
    for stamp in stamps:
        try:
            now = Stamp.of(stamp.path)
        except OSError as error:
            raise BadInput(
                f"{stamp.path}: gone while in use ({error.strerror}); put it back and run again"
            ) from error
        if now != stamp:
            raise BadInput(
                f"{stamp.path}: changed while in use, so nothing can be said of it; run again"
            )
