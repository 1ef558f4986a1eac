"""Files of calibration data that go or change while they are read, and the room for copies."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from blockfold.calibration.sources import open_data
from blockfold.ir.errors import BadInput
from blockfold.tests.feeding import (
    INPUTS,
    arrays,
    npy_folder,
    refusal,
)

pytestmark = pytest.mark.usefixtures("spools")


def test_a_file_that_goes_while_in_use(tmp_path: Path) -> None:
    with open_data(npy_folder(tmp_path / "f", arrays()), INPUTS) as data:
        (tmp_path / "f" / "x.npy").unlink()
        with pytest.raises(BadInput, match=r"x\.npy: gone"):
            assert next(data.batches(np.arange(2), 2)).feeds


def test_a_temporary_copy_that_goes_while_in_use() -> None:
    """As a cleaner of old temporary files may do."""
    with open_data(iter([arrays()]), INPUTS) as data:
        for file in Path(tempfile.gettempdir()).glob("blockfold-*.scratch/*.bin"):
            file.unlink()
        with pytest.raises(BadInput, match=r"\.bin: gone or shorter while in use"):
            assert next(data.batches(np.arange(2), 2)).feeds


def test_a_file_that_changes_while_in_use(tmp_path: Path) -> None:
    with open_data(npy_folder(tmp_path / "f", arrays()), INPUTS) as data:
        assert next(data.batches(np.arange(2), 2)).feeds
        np.save(tmp_path / "f" / "x.npy", arrays()["x"] + 1)
        with pytest.raises(BadInput, match=r"x\.npy: changed while in use.*run again"):
            assert next(data.batches(np.arange(2), 2)).feeds
        with pytest.raises(BadInput, match=r"x\.npy: changed while in use"):
            data.require_unchanged()


def test_no_room_for_the_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    said = refusal(iter([arrays()]))
    assert "cannot write temporary files" in said
    assert "TMPDIR" in said
