"""Splits: seeded for ever, groups whole, fractions kept, too little data refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockfold.calibration.splits import Splits, parse_fractions, split
from blockfold.ir.errors import BadInput


def parts(splits: Splits) -> list[np.ndarray]:
    return [splits.fit, splits.select, splits.certify]


def lists(splits: Splits) -> list[list[int]]:
    return [part.tolist() for part in parts(splits)]


def refusal(**arguments: Any) -> str:
    with pytest.raises(BadInput) as caught:
        split(**arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_same_split_for_ever() -> None:
    """Literals: a change here means that nobody's recorded split can be made again."""
    assert lists(split(12)) == [[2, 3, 11], [1, 6, 8], [0, 4, 5, 7, 9, 10]]
    groups = np.array([7, 7, 3, 3, 3, 9, 1, 1, 4, 4])
    assert lists(split(10, seed=5, groups=groups)) == [[8, 9], [5, 6, 7], [0, 1, 2, 3, 4]]


@settings(deadline=None)
@given(
    samples=st.integers(20, 400),
    cuts=st.tuples(st.integers(5, 45), st.integers(5, 45)),
    seed=st.integers(0, 2**40),
)
def test_every_sample_once_at_the_fractions(samples: int, cuts: tuple[int, int], seed: int) -> None:
    fractions = (cuts[0] / 100, cuts[1] / 100, 1 - sum(cuts) / 100)
    made = split(samples, fractions=fractions, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(parts(made))), np.arange(samples))
    for part, fraction in zip(parts(made), fractions, strict=True):
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)
        assert len(part) > 0
        assert abs(len(part) - fraction * samples) <= 1
    assert (made.seed, made.fractions) == (seed, fractions)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=6, max_size=40), seed=st.integers(0, 2**40))
def test_groups_are_whole_and_parts_within_one_group(sizes: list[int], seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    made = split(len(groups), seed=seed, groups=groups)
    assert np.array_equal(np.sort(np.concatenate(parts(made))), np.arange(len(groups)))
    held = [set(groups[part].tolist()) for part in parts(made)]
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]
    for part, fraction in zip(parts(made), made.fractions, strict=True):
        assert len(part) > 0
        assert abs(len(part) - fraction * len(groups)) <= max(sizes)


def test_what_groups_are_called_changes_nothing() -> None:
    groups = np.array([5, 5, 2, 8, 8, 8, 1, 2, 0, 0, 6])
    renamed = np.array([90, 90, -4, 7, 7, 7, 88, -4, 12, 12, 3])
    assert lists(split(11, groups=groups)) == lists(split(11, groups=renamed))


def test_groups_of_one_are_no_groups() -> None:
    assert lists(split(30, seed=4, groups=np.arange(30)[::-1].copy())) == lists(split(30, seed=4))


def test_no_part_is_left_empty() -> None:
    """The nearest cuts would give the first part two of the three groups, or all."""
    made = split(30, fractions=(0.8, 0.1, 0.1), groups=np.repeat(np.arange(3), 10))
    assert [len(part) for part in parts(made)] == [10, 10, 10]


def test_the_seed_matters_and_parts_cannot_be_written() -> None:
    assert lists(split(40, seed=1)) != lists(split(40, seed=2))
    with pytest.raises(ValueError, match="read-only"):
        split(40).fit[0] = 3


def test_too_little_data() -> None:
    said = refusal(samples=3)
    assert "3 samples" in said
    assert "at least 4" in said
    assert "at least 10" in refusal(samples=9, fractions=(0.1, 0.4, 0.5))
    assert [len(part) for part in parts(split(4))] == [1, 1, 2]
    said = refusal(samples=8, groups=np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    assert "2 groups" in said
    assert "at least 3" in said
    said = refusal(samples=8, groups=np.zeros(7, np.int64))
    assert "(7,)" in said
    assert "8 samples" in said


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (0.0, 0.5, 0.5), (-0.5, 0.5, 1.0)])
def test_fractions_that_are_none(fractions: tuple[float, float, float]) -> None:
    assert "sum to 100" in refusal(samples=100, fractions=fractions)


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_seeds_that_are_none(seed: object) -> None:
    assert "whole number" in refusal(samples=100, seed=seed)


@pytest.mark.parametrize(
    ("text", "fractions"),
    [
        ("25/25/50", (0.25, 0.25, 0.5)),
        (".25/.25/.5", (0.25, 0.25, 0.5)),
        ("10 / 20 / 70", (0.1, 0.2, 0.7)),
        ("33.3/33.3/33.4", (0.333, 0.333, 0.334)),
    ],
)
def test_parsing(text: str, fractions: tuple[float, float, float]) -> None:
    assert parse_fractions(text) == pytest.approx(fractions, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "25/25", "25/25/25/25", "25/25/60", "a/b/c", "0/50/50", "-10/60/50", "nan/1/1", "1/1/1"],
)
def test_parsing_nonsense(text: str) -> None:
    with pytest.raises(BadInput, match="25/25/50") as caught:
        parse_fractions(text)
    assert caught.value.exit_code == 2
    assert repr(text) in str(caught.value)
