"""Calibration data for tests: a small set of arrays in many forms, and what a wrong one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockfold.calibration.sources import open_data
from blockfold.ir.errors import BadInput, BlockfoldError, Unsupported
from blockfold.ir.graph import Value

Arrays = dict[str, np.ndarray]

INPUTS = [Value("ids", "int64", ("batch", "seq")), Value("x", "float32", ("batch", 3))]
ROWS = 7


def arrays(rows: int = ROWS, length: int = 4, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 99, (rows, length)),
        "x": rng.standard_normal((rows, 3), np.float32),
        "labels": rng.integers(0, 9, rows),
        "groups": rng.integers(0, 3, rows),
    }


def cut(whole: Arrays, *ends: int) -> list[Arrays]:
    """Pieces of the rows, cut at `ends`."""
    pieces = [np.split(array, list(ends)) for array in whole.values()]
    return [dict(zip(whole, piece, strict=True)) for piece in zip(*pieces, strict=True)]


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, items: list[Arrays]) -> None:
        self.items = iter(items)

    def get_next(self) -> Arrays | None:
        return next(self.items, None)


def saved(path: Any, save: Callable[..., None], whole: Arrays) -> Any:
    save(path, **whole)
    return path


def npz_folder(path: Path, pieces: list[Arrays]) -> Path:
    path.mkdir()
    for at, piece in enumerate(pieces):
        saved(path / f"{at:03}.npz", np.savez, piece)
    return path


def npy_folder(path: Path, whole: Arrays) -> Path:
    path.mkdir()
    for name, array in whole.items():
        np.save(path / f"{name}.npy", array)
    return path


def refusal(
    source: object, inputs: list[Value] = INPUTS, error: type[BlockfoldError] = BadInput
) -> str:
    with pytest.raises(error) as caught:
        open_data(source, inputs)
    assert caught.value.exit_code == (3 if error is Unsupported else 2)
    assert "\n" not in str(caught.value)
    return str(caught.value)
