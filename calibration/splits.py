"""The three parts of the calibration data: to fit on, to choose on, and to certify on, once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput

Fractions = tuple[float, float, float]

DEFAULT: Fractions = (0.25, 0.25, 0.5)


@dataclass(frozen=True, eq=False)
class Splits:
    """Sample indices (n,) of each part, ascending and read-only; together every sample once."""

    fit: NDArray[np.int64]
    select: NDArray[np.int64]
    certify: NDArray[np.int64]
    seed: int
    fractions: Fractions


def split(
    samples: int,
    *,
    fractions: Fractions = DEFAULT,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
) -> Splits:
    """Cut `samples` samples into parts at random, keeping each group of `groups` (samples,) whole.

    Groups (without `groups`, single samples) are put in random order; the cuts fall between groups,
    as near as can be to where the fractions want them. The same arguments give the same parts for
    ever, on any machine and NumPy: the order comes from PCG64's raw integers, whose stream NumPy
    guarantees (that of `Generator.permutation` it does not). Only which samples share a group
    matters, not what groups are called. BadInput where a part's share is less than one sample, or
    there are fewer than three groups.
    """
    share = "/".join(f"{100 * fraction:g}" for fraction in fractions)
    _check(fractions, f"split {share}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise BadInput(f"seed {seed!r}: give a whole number from 0 on")
    if groups is not None and groups.shape != (samples,):
        raise BadInput(
            f"'groups' has shape {groups.shape} for {samples} samples; give one for each"
        )
    needed = max(3, math.ceil(1 / min(fractions) - 1e-9))
    if samples < needed:
        raise BadInput(
            f"the data has {samples} samples, and a {share} % split needs at least {needed}: "
            "give more data or another split"
        )
    members, sizes = _gather(np.arange(samples) if groups is None else groups)
    if len(sizes) < 3:
        raise BadInput(
            f"the data has {len(sizes)} groups, and a split into 3 parts needs at least 3: a group "
            "is never divided; give more groups"
        )
    order = np.argsort(np.random.PCG64(seed).random_raw(len(sizes)), kind="stable")
    ends = np.cumsum(sizes[order])  # samples up to and with each group
    first = _nearest(ends, fractions[0] * samples, 0, len(ends) - 3)
    second = _nearest(ends, (fractions[0] + fractions[1]) * samples, first + 1, len(ends) - 2)
    part_of_group = np.empty(len(order), np.int64)
    part_of_group[order] = np.searchsorted([first, second], np.arange(len(order)), side="left")
    part = part_of_group[members]
    fit, select, certify = (np.flatnonzero(part == which).astype(np.int64) for which in range(3))
    for indices in (fit, select, certify):
        indices.setflags(write=False)
    return Splits(fit, select, certify, seed, fractions)


def parse_fractions(text: str) -> Fractions:
    """`25/25/50` or `.25/.25/.5` as fractions of fit, select and certify."""
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError as error:
        raise BadInput(f"split {text!r}: give three numbers, as in 25/25/50") from error
    if len(parts) != 3:
        raise BadInput(f"split {text!r}: give three numbers (fit/select/certify), as in 25/25/50")
    if math.isclose(sum(parts), 100):
        parts = [part / 100 for part in parts]
    fit, select, certify = parts
    _check((fit, select, certify), f"split {text!r}")
    return fit, select, certify


def _check(fractions: Fractions, what: str) -> None:
    if not all(0 < fraction < 1 for fraction in fractions) or not math.isclose(sum(fractions), 1):
        raise BadInput(f"{what}: give three parts above 0 that sum to 100 (or 1), as in 25/25/50")


def _gather(groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each sample's group (samples,), numbered by first appearance, and the groups' sizes."""
    _, firsts, members, sizes = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(firsts), np.int64)
    by_appearance = np.argsort(firsts)
    rank[by_appearance] = np.arange(len(firsts))
    return rank[members], sizes[by_appearance].astype(np.int64)


def _nearest(ends: NDArray[np.int64], target: float, low: int, high: int) -> int:
    """Index in low..high of the end nearest to the target; the earlier of two as near."""
    return low + int(np.argmin(np.abs(ends[low : high + 1] - target)))
