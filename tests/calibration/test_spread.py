"""Processes share the samples, and what they sum is what one process would have."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from blockfold.calibration.moments import Centred, CoMoment
from blockfold.calibration.spread import ALONE, Processes, local_rank, processes
from blockfold.calibration.sweep import Pair, Statistics
from blockfold.ir.errors import BadInput
from blockfold.tests.together import together

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((97, 5)) + 300.0, RNG.standard_normal((97, 3)) - 4.0
WEIGHTS = (RNG.random(97) > 0.2).astype(np.float64)


def moment(rows: np.ndarray) -> CoMoment:
    if not len(rows):
        return CoMoment.zero(5, 3)
    return CoMoment.of(*(Centred.of(value[rows], WEIGHTS[rows]) for value in (X, Y)))


def assert_equal(found: CoMoment, wanted: CoMoment) -> None:
    assert (found.rows, found.weight) == (wanted.rows, wanted.weight)
    for name in ("mean_x", "mean_y", "product"):
        here, there = getattr(found, name), getattr(wanted, name)
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-12 * np.abs(there).max())


@pytest.mark.parametrize("size", [1, 2, 4, 120])
def test_every_sample_is_shared_out_once(size: int) -> None:
    shares = [Processes(rank, size).share(np.arange(97)) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(97))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("size", [2, 3, 4])
def test_reduced_moments_are_those_of_one_process(size: int) -> None:
    found = together(size, lambda group: group.reduce(moment(group.share(np.arange(97)))))
    for part in found:
        assert_equal(part, moment(np.arange(97)))


def test_processes_without_rows_change_nothing() -> None:
    found = together(4, lambda group: group.reduce(moment(group.share(np.arange(2)))))
    for part in found:
        assert_equal(part, moment(np.arange(2)))
    nothing = together(2, lambda group: group.reduce(CoMoment.zero(5, 3)))
    assert [part.weight for part in nothing] == [0.0, 0.0]


def test_reduced_moments_are_no_sum_of_products() -> None:
    """The means of the shares differ, which plain sums would miss."""
    parts = [moment(rows) for rows in np.array_split(np.argsort(X[:, 0]), 3)]
    plain = sum(part.product for part in parts)
    assert np.abs(plain - moment(np.arange(97)).product).max() > 1.0


def test_reduced_statistics_are_those_of_one_process() -> None:
    pair = Pair("x", "y", -1)
    square = RNG.standard_normal((40, 5))

    def gather(group: Processes) -> Statistics:
        found = Statistics([pair])
        rows = group.share(np.arange(40))
        if len(rows):
            found.add({"x": square[rows], "y": np.tanh(square[rows])}, None)
        return found.reduced(group, {"x": 5, "y": 5})

    whole = gather(ALONE)
    for size in (2, 41):
        for part in together(size, gather):
            assert_equal(part.products["x", "y"], whole.products["x", "y"])
            assert part.cosine(pair) == pytest.approx(whole.cosine(pair), rel=1e-12)


def test_torchrun_without_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    with pytest.raises(BadInput, match=r"blockfold\[torch\]"), processes():
        pass


def test_a_process_by_itself_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # a scheduler's, not torchrun's
    with processes() as group:
        assert group == ALONE
        assert group.leads
    assert local_rank() is None
