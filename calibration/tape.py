"""Tapes: run a model forward over the data piece by piece, keeping only where it stands.

A tape holds some values of every batch on disk. To reach values further on, only the nodes between
are run, and then the tape holds those: walking through a whole model costs one plain pass, however
often it stops, and memory for one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.onnx_extract import extract
from ..ir.onnx_file import OnnxModel
from .data import Dataset, Spool
from .runtime import Runner, Runtime, fixed_batch, pad_rows

Samples = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Values of one batch. Where the model fixes its batch, `rows` of `size` are no padding."""

    values: dict[str, np.ndarray]
    feeds: dict[str, np.ndarray]
    rows: int
    size: int


class Tape:
    """The place a model has been run to on some samples."""

    def __init__(self, data: Dataset, samples: Samples, runtime: Runtime, batch: int) -> None:
        self._data, self._samples, self._runtime, self._batch = data, samples, runtime, batch
        self._held: dict[str, list[NDArray[np.floating]]] = {}
        self._spool = Spool()

    def advance(self, model: OnnxModel, wanted: Sequence[str]) -> Iterator[Piece]:
        """Run on to `wanted` from where the tape stands, and stand there afterwards.

        The model may have been edited behind the values held, not before them.
        """
        names = list(dict.fromkeys(wanted))
        fixed = fixed_batch(model)
        new = [name for name in names if name not in self._held]
        runner = None
        if new:
            piece = extract(model, self._held, new)
            runner = Runner(piece, self._runtime)
        spool = Spool()
        held: dict[str, list[NDArray[np.floating]]] = {name: [] for name in names}
        for at, batch in enumerate(self._data.batches(self._samples, fixed or self._batch)):
            rows = len(batch.samples)
            size = fixed or rows
            feeds = {name: pad_rows(array, size) for name, array in batch.feeds.items()}
            known = {name: arrays[at] for name, arrays in self._held.items()}
            values = {name: known[name] for name in names if name in known}
            if runner is not None:
                given = feeds | known
                values |= runner.run_whole({n: given[n] for n in runner.inputs})
            for name in names:
                held[name].append(
                    _kept(spool, f"{len(held[name])}.{names.index(name)}", values[name])
                )
            yield Piece(values, feeds, rows, size)
        self._spool.close()
        self._held, self._spool = held, spool

    def close(self) -> None:
        self._spool.close()


def _kept(spool: Spool, name: str, array: NDArray[np.floating]) -> NDArray[np.floating]:
    """The array written to disk and mapped from there."""
    if array.size == 0:
        return array
    spool.write(name, np.ascontiguousarray(array).reshape(-1))
    return np.memmap(spool.path(name), array.dtype, "r", shape=array.shape)
