"""Slots: arrays on disk in one temporary file, whose places are used again.

A walk writes and drops many arrays of the same sizes. Written where others were, they need no new
pages of the system's cache, no folders and no opening of files: half the time of files of their
own.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..ir.scratch import Scratch, storing

GRAIN_BYTES = 2**16
"""Places are multiples of this, so that arrays of nearly one size can follow each other."""


@dataclass(frozen=True)
class Slot:
    """Where an array lies, `size` bytes being set aside for it."""

    offset: int
    size: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Slots:
    """The file; it is made when first needed, and gone when this is closed or collected."""

    def __init__(self) -> None:
        self.bytes = 0
        self._free: dict[int, list[int]] = {}
        self._opened: BinaryIO | None = None
        self._finalizer: weakref.finalize[..., Slots] | None = None

    def put(self, array: NDArray[Any]) -> Slot:
        """Write an array; BadInput where the disk will not take it."""
        size = -(-array.nbytes // GRAIN_BYTES) * GRAIN_BYTES
        free = self._free.get(size)
        offset = free.pop() if free else self.bytes
        with storing():
            file = self._file()
            file.seek(offset)
            file.write(_bytes_of(np.ascontiguousarray(array)).data)
        self.bytes = max(self.bytes, offset + size)
        return Slot(offset, size, array.dtype, array.shape)

    def get(self, slot: Slot) -> NDArray[Any]:
        """A fresh copy. It is read, not mapped: pages of a map count as this process's memory."""
        array = np.empty(slot.shape, slot.dtype)
        with storing():
            file = self._file()
            file.seek(slot.offset)
            file.readinto(_bytes_of(array))  # type: ignore[attr-defined]
        return array

    def free(self, slots: Iterable[Slot]) -> None:
        """Let others have the places."""
        for slot in slots:
            self._free.setdefault(slot.size, []).append(slot.offset)

    def close(self) -> None:
        """Remove the file; nothing can be put or got any more."""
        if self._finalizer is not None:
            self._finalizer()

    def _file(self) -> BinaryIO:
        if self._opened is None:
            scratch = Scratch()
            self._opened = (scratch.path / "slots").open("w+b", buffering=0)
            self._finalizer = weakref.finalize(self, _remove, scratch, self._opened)
        return self._opened


def _remove(scratch: Scratch, file: BinaryIO) -> None:
    file.close()
    scratch.close()


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
