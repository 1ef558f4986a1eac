"""Calibration data as everything else reads it: samples, in batches, never all in memory at once.

An array is held as its elements one after another (C order) and the runs of equal shape among the
samples. The elements lie in the user's own .npy file or array or in a private temporary folder, and
are mapped only while one batch is taken, so memory does not grow with the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from ..ir.scratch import Scratch, storing
from ..ir.stamp import Stamp, require_unchanged


@dataclass(frozen=True, eq=False)
class Batch:
    """`samples` (rows,) says which samples the rows are; they are read when first asked for."""

    columns: Sequence[Column]
    samples: NDArray[np.int64]

    @cached_property
    def feeds(self) -> dict[str, NDArray[Any]]:
        """Per input an array (rows, ...)."""
        return {column.name: column.take(self.samples) for column in self.columns}


@dataclass(frozen=True)
class Stored:
    """Elements one after another in a file, from `offset_bytes` on; `stamp` if it is the user's."""

    path: Path
    dtype: np.dtype[Any]
    offset_bytes: int
    elements: int
    stamp: Stamp | None = None

    def map(self) -> NDArray[Any]:
        """The elements (n,), mapped read-only; BadInput where the file has gone or changed."""
        if not self.elements:
            return np.empty(0, self.dtype)
        if self.stamp is not None:
            require_unchanged([self.stamp])
        try:
            mapped = np.memmap(self.path, self.dtype, "r", self.offset_bytes, (self.elements,))
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.path}: gone or shorter while in use ({error})") from error
        return np.asarray(mapped)


@dataclass(frozen=True, eq=False)
class Column:
    """One array of every sample; run r is samples starts[r] .. starts[r + 1] - 1, of one shape."""

    name: str
    dtype: np.dtype[Any]
    elements: Stored | NDArray[Any]
    starts: NDArray[np.int64]  # (runs + 1,)
    offsets: NDArray[np.int64]  # (runs,), in elements
    kinds: NDArray[np.int64]  # (runs,), index into shapes
    shapes: tuple[tuple[int, ...], ...]  # the different shapes of one sample

    def run(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The run of each sample, (n,)."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def take(self, samples: NDArray[np.int64]) -> NDArray[Any]:
        """A fresh array (n, ...) of the column's dtype; the samples must share one shape."""
        runs, elements = self.run(samples), self._map()
        shape = self.shapes[self.kinds[runs[0]]]
        taken = np.empty((len(samples), *shape), self.dtype)
        for run in np.unique(runs):
            here, begin = runs == run, int(self.offsets[run])
            count = int(self.starts[run + 1] - self.starts[run])
            rows = elements[begin : begin + count * math.prod(shape)].reshape(count, *shape)
            taken[here] = rows[samples[here] - self.starts[run]]
        return taken

    def whole(self) -> NDArray[Any]:
        """A column of one shape as one array (samples, ...), uncopied where its dtype is right."""
        elements = self._map().reshape(self.starts[-1], *self.shapes[0])
        return elements.astype(self.dtype, copy=False)

    def _map(self) -> NDArray[Any]:
        return self.elements.map() if isinstance(self.elements, Stored) else self.elements


class Spool:
    """A private folder under TMPDIR, removed on close, when collected and at exit."""

    def __init__(self) -> None:
        self.bytes = self.files = 0
        self._scratch: Scratch | None = None

    def path(self, file: str) -> Path:
        """Where a file lies; makes the folder."""
        if self._scratch is None:
            self._scratch = Scratch()
        return self._scratch.path / file

    def write(self, file: str, elements: NDArray[Any]) -> None:
        """Append elements (n,); BadInput where the disk will not take them."""
        with storing(), self.path(file).open("ab") as stream:
            stream.write(elements.data)
        self.bytes += elements.nbytes

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.close()


class Dataset:
    """Samples for a model's inputs, with labels and groups where the data has them.

    `labels` has shape (samples,) or (samples, ...), int64 or float64. `groups` (samples,) is int64,
    numbered by first appearance: only which samples go together matters. `digest` is a sha256 (hex)
    over names, dtypes as fed, per-sample shapes and bytes in sample order: form of the data, its
    cutting into files or batches, the order of arrays and the names of groups leave no trace.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        labels: Column | None,
        groups: NDArray[np.int64] | None,
        digest: str,
        spool: Spool,
        *,
        random: bool = False,
        stamps: Sequence[Stamp] = (),
    ) -> None:
        self.names = tuple(column.name for column in columns)
        self.samples = int(columns[0].starts[-1])
        self.labels = None if labels is None else labels.whole()
        self.groups, self.digest, self.random = groups, digest, random
        self.closed = False
        self._columns = tuple(columns)
        self._spool = spool
        self._stamps = tuple(stamps)

    def require_unchanged(self) -> None:
        """BadInput where a file that the samples came from has changed since."""
        require_unchanged(self._stamps)

    @property
    def spooled_bytes(self) -> int:
        """Size of the temporary copy; 0 where all data is read in place."""
        return self._spool.bytes

    def batches(self, samples: NDArray[np.int64], size: int) -> Iterator[Batch]:
        """The given samples (n,) in ascending order, at most `size` of one shape at a time.

        Neighbours of equal shape share a batch, whatever file they came from. Feeds are fresh.
        """
        chosen = np.sort(np.asarray(samples, np.int64))
        if self.closed:
            raise ValueError("the data set is closed")
        if size < 1:
            raise ValueError(f"a batch has at least one row, not {size}")
        if chosen.size and not (chosen[0] >= 0 and chosen[-1] < self.samples):
            raise IndexError(f"samples {chosen[0]}..{chosen[-1]}: only 0..{self.samples - 1} exist")
        return self._batches(chosen, size)

    def _batches(self, chosen: NDArray[np.int64], size: int) -> Iterator[Batch]:
        kinds = np.stack([column.kinds[column.run(chosen)] for column in self._columns])
        breaks = np.flatnonzero((kinds[:, 1:] != kinds[:, :-1]).any(axis=0)) + 1
        for alike in np.split(chosen, breaks):
            for at in range(0, len(alike), size):
                rows = alike[at : at + size]
                yield Batch(self._columns, rows)

    def typical(self) -> NDArray[np.int64]:
        """The samples (n,) of the shapes that come nearest to the median of every length.

        Lengths of several inputs belong together (a mask is as long as its tokens and those before
        them), so they are those of real samples. Of two middle lengths the lower one counts.
        """
        every = np.concatenate(
            [
                np.repeat(
                    np.array(column.shapes, np.int64)[column.kinds], np.diff(column.starts), axis=0
                )
                for column in self._columns
            ],
            axis=1,
        )
        median = np.sort(every, axis=0)[(self.samples - 1) // 2]
        nearest = every[np.abs(every - median).sum(axis=1).argmin()]
        return np.flatnonzero((every == nearest).all(axis=1))

    def close(self) -> None:
        """Remove the temporary copy; batches can no longer be taken."""
        self.closed = True
        self._spool.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
