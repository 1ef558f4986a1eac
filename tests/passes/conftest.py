"""Fixtures of the tests of passes."""

from __future__ import annotations

import pytest

from blockfold.calibration import latency


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time sessions over a few runs only."""
    for timing in (latency.take_turns, latency.take_turns_alone):
        haste = timing.__kwdefaults__
        assert haste is not None
        monkeypatch.setitem(haste, "rounds", 2)
        monkeypatch.setitem(haste, "round_seconds", 0.001)
