"""Fixtures of the tests of passes."""

from __future__ import annotations

import pytest

from blockfold.calibration import latency


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time sessions over a few runs only."""
    haste = latency.take_turns.__kwdefaults__
    assert haste is not None
    monkeypatch.setitem(haste, "rounds", 2)
    monkeypatch.setitem(haste, "round_seconds", 0.001)
