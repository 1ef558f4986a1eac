"""Tapes: run a model forward over the data piece by piece, holding only where it stands.

A tape holds some values of every batch, on disk beyond a fixed amount of memory. To reach values
further on, only the nodes between are run. Walking through a whole model so costs one plain pass,
however often it stops; a value that is put in place of another is what the rest then runs on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..ir.onnx_extract import extract
from ..ir.onnx_file import OnnxModel
from .data import Batch, Dataset
from .runtime import Feeds, Runner, Runtime, cut_rows, fixed_batch, pad_rows
from .slots import Slot, Slots

Samples = NDArray[np.int64]
Floats = NDArray[np.floating]


IN_MEMORY_BYTES = 16 * 2**20
"""What the tapes of a model may hold in memory before they go to disk."""

SESSIONS_BYTES = 2**30
"""Weights that the open sessions of pieces may hold; those used longest ago are closed."""


class Pieces:
    """Sessions of pieces of one model, opened when asked for and shared by all tapes.

    They stay open while there is room, so that a large model is never in memory as a whole.
    """

    def __init__(self, model: OnnxModel, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime
        self.fixed_batch = fixed_batch(model)
        self.room = _Room(IN_MEMORY_BYTES)
        self._open: dict[tuple[frozenset[str], tuple[str, ...]], tuple[Runner, int]] = {}

    def run(self, piece: Piece, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """The wanted values from those of a batch; the model's inputs are read where needed."""
        given = piece.values
        key = frozenset(given), tuple(wanted)
        held = self._open.pop(key) if key in self._open else self._opened(given, wanted)
        self._open[key] = held  # last: used last
        runner = held[0]
        return runner.run_whole({name: piece.at_hand(name) for name in runner.inputs})

    def _opened(self, given: Iterable[str], wanted: Sequence[str]) -> tuple[Runner, int]:
        """A session of the nodes between, in the room of others, and the bytes it holds."""
        piece = extract(self.model, given, wanted)
        nbytes = piece.size_bytes
        self.make_room(nbytes)
        return Runner(piece, self.runtime, pooled=True), nbytes

    def open(self, given: Iterable[str], wanted: Sequence[str]) -> Runner:
        """A session of the nodes between, for the caller alone."""
        piece = extract(self.model, given, wanted)
        self.make_room(piece.size_bytes)
        return Runner(piece, self.runtime, pooled=True)

    def make_room(self, nbytes: int) -> None:
        """Close sessions, those used longest ago first, until one of that size may be opened."""
        while self._open and nbytes + sum(n for _, n in self._open.values()) > SESSIONS_BYTES:
            del self._open[next(iter(self._open))]

    def close(self) -> None:
        """Close all sessions; they are opened again when asked for."""
        self._open.clear()


@dataclass(frozen=True)
class Piece:
    """Values of one batch. Where the model fixes its batch, that many rows are `size`, filling and
    all.
    """

    values: Mapping[str, Floats]
    batch: Batch
    size: int

    @property
    def samples(self) -> Samples:
        return self.batch.samples

    @cached_property
    def feeds(self) -> Feeds:
        """The model's inputs, filled up where the model fixes its batch."""
        return {name: pad_rows(array, self.size) for name, array in self.batch.feeds.items()}

    def at_hand(self, name: str) -> np.ndarray:
        """A value held or, where none has that name, an input of the model."""
        return self.values[name] if name in self.values else self.feeds[name]

    def real(self, name: str) -> Floats:
        """A value without the rows that only fill up a fixed batch."""
        return cut_rows(self.values[name], len(self.samples), self.size)


class _Room:
    """Memory that all tapes of a model share, and the disk beyond it."""

    def __init__(self, nbytes: int) -> None:
        self.left, self.slots = nbytes, Slots()


class _Lease:
    """What one strip has of the room, and gives back in the end."""

    def __init__(self, room: _Room) -> None:
        self.room, self.taken = room, 0
        self.slots: list[Slot] = []

    def store(self, array: Floats) -> Floats | Slot:
        """The array itself where there is memory left, else where it lies on disk."""
        if array.nbytes <= self.room.left:
            self.room.left -= array.nbytes
            self.taken += array.nbytes
            return array
        slot = self.room.slots.put(array)
        self.slots.append(slot)
        return slot

    def end(self) -> None:
        self.room.left += self.taken
        self.room.slots.free(self.slots)


class _Strip:
    """One value of every batch, in memory while all strips of a model find room there."""

    def __init__(self, room: _Room) -> None:
        self._lease = _Lease(room)
        self._arrays: list[Floats | Slot] = []
        self._finalizer = weakref.finalize(self, self._lease.end)

    def append(self, array: Floats) -> None:
        self._arrays.append(self._lease.store(array))

    def __getitem__(self, at: int) -> Floats:
        found = self._arrays[at]
        return self._lease.room.slots.get(found) if isinstance(found, Slot) else found

    def close(self) -> None:
        self._arrays.clear()
        self._finalizer()


class _Values(Mapping[str, Floats]):
    """The values of one batch, each read when it is first asked for."""

    def __init__(self, strips: Mapping[str, _Strip], at: int) -> None:
        self._strips, self._at = strips, at
        self._read: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._read:
            self._read[name] = self._strips[name][self._at]
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._strips

    def __iter__(self) -> Iterator[str]:
        return iter(self._strips)

    def __len__(self) -> int:
        return len(self._strips)


class Tape:
    """The place a model has been run to on some samples."""

    def __init__(self, pieces: Pieces, data: Dataset, samples: Samples, batch: int) -> None:
        self._pieces, self._data, self.samples = pieces, data, samples
        self._batch = pieces.fixed_batch or batch
        self._held: dict[str, _Strip] = {}

    def fork(self) -> Tape:
        """Another tape at the same place; what is held is shared until either moves on."""
        other = Tape(self._pieces, self._data, self.samples, self._batch)
        other._held = dict(self._held)
        return other

    def batches(self) -> Iterator[Piece]:
        """What is held, batch by batch."""
        fixed, held = self._pieces.fixed_batch, dict(self._held)
        for at, batch in enumerate(self._data.batches(self.samples, self._batch)):
            yield Piece(_Values(held, at), batch, fixed or len(batch.samples))

    def real(self, name: str) -> Iterator[Floats]:
        """A value held, batch by batch, without what only fills up a fixed batch."""
        return (piece.real(name) for piece in self.batches())

    def reach(self, wanted: Iterable[str]) -> None:
        """Run on to the wanted values and hold them too."""
        new = [name for name in dict.fromkeys(wanted) if name not in self._held]
        if new:
            strips = {name: _Strip(self._pieces.room) for name in new}
            for piece in self.batches():
                found = self._pieces.run(piece, new)
                for name, strip in strips.items():
                    strip.append(found[name])
            self._held |= strips

    def put(self, name: str, made: Callable[[Piece], Floats]) -> None:
        """Hold, under that name, what a function makes of every batch."""
        strip = _Strip(self._pieces.room)
        for piece in self.batches():
            strip.append(made(piece))
        self._held[name] = strip

    def close(self) -> None:
        """Let go of everything, on disk too, whoever else holds it."""
        for strip in self._held.values():
            strip.close()
        self._held = {}

    def keep(self, names: Iterable[str]) -> None:
        """Let go of everything else."""
        wanted = set(names)
        self._held = {name: strip for name, strip in self._held.items() if name in wanted}
