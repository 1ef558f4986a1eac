"""Processes played by threads of one: the same sums, without starting any."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blockfold.calibration.spread import Processes

Made = TypeVar("Made")
WAIT_SECONDS = 60


class Together(Processes):
    """One of several threads that sum in step."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(table))
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_barrier", barrier)

    _table: list[Any]
    _barrier: threading.Barrier

    def sum(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        self._table[self.rank] = array
        self._barrier.wait(WAIT_SECONDS)
        shapes = {(each.shape, each.dtype) for each in self._table}
        assert len(shapes) == 1, f"summed together: {shapes}"
        total: NDArray[np.generic] = np.sum(self._table, axis=0, dtype=array.dtype)
        self._barrier.wait(WAIT_SECONDS)
        return total


def together(size: int, work: Callable[[Processes], Made]) -> list[Made]:
    """What the work of each of so many processes gives."""
    table, barrier = [None] * size, threading.Barrier(size)

    def run(rank: int) -> Made:
        try:
            return work(Together(rank, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        begun = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for one in begun if (error := one.exception()) is not None]
    # one that fails stops the others, which may be told of it while they wake
    for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    return [one.result() for one in begun]
