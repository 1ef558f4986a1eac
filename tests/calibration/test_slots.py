"""Slots: what is put in comes out, places are used again, nothing is left behind."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blockfold.calibration.slots import GRAIN_BYTES, Slots
from blockfold.ir.errors import BadInput
from blockfold.ir.scratch import PREFIX

ARRAYS: list[NDArray[Any]] = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.arange(12, dtype=np.float16).reshape(3, 4).T,
    np.array([[True, False]]),
    np.zeros((0, 5), np.float32),
    np.float64(3.5) * np.ones(()),
    np.arange(GRAIN_BYTES, dtype=np.int64),
]


def left() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_arrays_come_back_as_they_were() -> None:
    slots = Slots()
    kept = [slots.put(array) for array in ARRAYS]
    for array, slot in zip(ARRAYS, kept, strict=True):
        found = slots.get(slot)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)
    slots.close()


def test_places_are_used_again_and_only_when_free() -> None:
    slots = Slots()
    first, second = (slots.put(np.full(10, value)) for value in (1.0, 2.0))
    before = slots.bytes
    slots.free([first])
    third, fourth = (slots.put(np.full(10, value)) for value in (3.0, 4.0))
    assert third.offset == first.offset
    assert slots.bytes == before + GRAIN_BYTES
    assert [slots.get(slot)[0] for slot in (second, third, fourth)] == [2.0, 3.0, 4.0]
    slots.close()


def test_nothing_is_left_behind() -> None:
    closed, collected, unused = Slots(), Slots(), Slots()
    for slots in (closed, collected):
        slots.put(np.ones(3))
    assert len(left()) == 2
    closed.close()
    closed.close()
    unused.close()
    del slots, collected
    gc.collect()
    assert left() == []


def test_a_disk_that_is_full_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots()
    slots.put(np.ones(3))

    class Full:
        def seek(self, _offset: int) -> None: ...

        def write(self, _content: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(slots, "_opened", Full())
    with pytest.raises(BadInput, match=r"cannot write temporary files.*No space left"):
        slots.put(np.ones(3))
