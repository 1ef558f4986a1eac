"""Latency: ratios point the right way, sessions take turns, profiles fit the data."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from blockfold.calibration import latency
from blockfold.calibration.latency import (
    Profile,
    Timing,
    profile_from_data,
    take_turns,
    take_turns_alone,
)
from blockfold.calibration.runtime import Runner
from blockfold.calibration.sources import open_data
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.tests.networks import Arrays, fixed_batch, masked_encoder, residual_mlp, samples


def test_above_one_means_faster() -> None:
    slow, fast = Timing(np.array([4.0, 6.0, 5.0])), Timing(np.array([2.0, 3.0, 2.0]))
    middle, low, high = fast.ratio_to(slow)
    assert (middle, low) == (2.0, 2.0)
    assert 2.0 < high <= 2.5
    assert slow.ratio_to(fast)[0] == 0.5
    assert fast.ratio_to(fast) == (1.0, 1.0, 1.0)
    assert (slow.median_ms, fast.median_ms) == (5.0, 2.0)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that slows down tenfold half-way does not disturb them."""
    drift = np.array([1.0, 1.0, 10.0, 10.0])
    fast, slow = Timing(2 * drift), Timing(3 * drift)
    assert fast.ratio_to(slow) == pytest.approx((1.5, 1.5, 1.5))


class _Clock:
    """Time that passes only in fake sessions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.log: list[str] = []

    def perf_counter(self) -> float:
        return self.seconds


class _Session:
    """As much of a Runner as is timed."""

    def __init__(self, clock: _Clock, name: str, seconds: float) -> None:
        self.clock, self.name, self.seconds = clock, name, seconds

    def taken(self, feeds: object) -> object:
        return feeds

    def run_only(self, _feeds: object) -> None:
        self.clock.seconds += self.seconds
        self.clock.log.append(self.name)


def test_sessions_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(latency, "time", clock)
    sessions: Any = [_Session(clock, "a", 0.01), _Session(clock, "b", 0.02)]
    timings = take_turns(
        cast("list[Runner]", sessions), Profile(1, {}), rounds=3, round_seconds=0.04
    )
    assert [t.median_ms for t in timings] == pytest.approx([10.0, 20.0])
    assert [len(t.rounds_ms) for t in timings] == [3, 3]
    assert "".join(clock.log) == "aaabbb" + 3 * "aaaabb"
    assert timings[0].ratio_to(timings[1])[0] == pytest.approx(2.0)


def test_alone_a_session_is_opened_for_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(latency, "time", clock)
    living: weakref.WeakSet[_Session] = weakref.WeakSet()

    def opener(name: str, seconds: float) -> Callable[[], Any]:
        def opened() -> _Session:
            assert not living, "another is still open"
            session = _Session(clock, name, seconds)
            living.add(session)
            clock.seconds += 5.0  # opening is no part of a run
            clock.log.append("|")
            return session

        return opened

    timings = take_turns_alone(
        [opener("a", 0.01), opener("b", 0.02)], Profile(1, {}), rounds=2, round_seconds=0.04
    )
    assert [list(t.rounds_ms) for t in timings] == [
        pytest.approx([10.0, 10.0]),
        pytest.approx([20.0, 20.0]),
    ]
    assert sorted("".join(clock.log).split("|")) == ["", *2 * ["aaaaaaa"], *2 * ["bbbbb"]]


def profile(
    model: OnnxModel, data: Arrays, settings: dict[str, int] | None = None, fixed: int | None = None
) -> Profile:
    with open_data(data, model.inputs) as opened:
        return profile_from_data(opened, model.inputs, settings or {}, fixed)


def test_by_default_one_sample_of_median_length() -> None:
    model = read(masked_encoder())
    pieces = [samples(model.proto, rows, length=n) for rows, n in ((3, 4), (2, 9), (1, 30))]
    whole: Any = pieces
    with open_data(whole, model.inputs) as opened:
        found = profile_from_data(opened, model.inputs, {}, None)
    assert found.batch == 1
    assert {feed.shape for feed in found.feeds.values()} == {(1, 4)}
    np.testing.assert_array_equal(found.feeds["input_ids"], pieces[0]["input_ids"][:1])
    assert str(found) == "batch 1: input_ids (1, 4), attention_mask (1, 4)"


def test_axes_are_cut_or_filled_by_repeating() -> None:
    model = read(masked_encoder())
    data = samples(model.proto, 3, length=5)
    found = profile(model, data, {"batch": 4, "seq": 7}).feeds["input_ids"]
    rows = data["input_ids"][[0, 1, 2, 0]]
    np.testing.assert_array_equal(found, np.hstack([rows, rows[:, :2]]))
    assert found.dtype == np.int64
    short = profile(model, data, {"seq": 2}).feeds["attention_mask"]
    assert short.shape == (1, 2)


def test_numbers_that_the_model_fixes_stay() -> None:
    model = read(residual_mlp(1))
    found = profile(model, samples(model.proto, 3), {"batch": 2})
    assert found.feeds["x"].shape == (2, 12, 8)
    fixed = read(fixed_batch(residual_mlp(1), 4))
    assert profile(fixed, samples(residual_mlp(1), 6), fixed=4).feeds["x"].shape == (4, 12, 8)


def test_unknown_dimensions_and_another_batch_are_refused() -> None:
    model = read(masked_encoder())
    data = samples(model.proto, 3)
    with pytest.raises(
        BadInput, match=r"--profile len=\.\.\.: no such dimension; there is batch, seq"
    ):
        profile(model, data, {"len": 3})
    fixed = read(fixed_batch(residual_mlp(1), 4))
    with pytest.raises(BadInput, match="batch=2: the model fixes its batch at 4"):
        profile(fixed, samples(residual_mlp(1), 6), {"batch": 2}, 4)


@pytest.mark.parametrize("wish", [{"batch": 0}, {"batch": -1}, {"seq": 0}, {"seq": -1}], ids=str)
def test_lengths_below_one_are_refused(wish: dict[str, int]) -> None:
    model = read(masked_encoder())
    with pytest.raises(BadInput):
        profile(model, samples(model.proto, 3), wish)
