"""Latency, side by side: sessions take turns, so that a drifting machine treats all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from ..ir.graph import Value
from ..ir.onnx_file import OnnxModel
from .data import Dataset
from .runtime import Runner, Runtime

WARM_UP_RUNS = 3

MOST_RUNS = 200
"""Of one session in a turn."""

SIDE_BY_SIDE_BYTES = 2**31
"""What models that are open side by side may weigh together."""


class Runs(Protocol):
    """What can be timed: a Runner, or another runtime's."""

    def taken(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """The feeds that it takes."""

    def run_only(self, feeds: dict[str, NDArray[np.generic]]) -> None: ...


@dataclass(frozen=True)
class Profile:
    """The shapes that will be served: batch size and lengths of the other axes of each input."""

    batch: int
    feeds: Mapping[str, NDArray[np.generic]]

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(feed.shape)}" for name, feed in self.feeds.items())
        return f"batch {self.batch}: {shapes}"


@dataclass(frozen=True)
class Timing:
    """Milliseconds per run, one number per round (the median of the runs in that round)."""

    rounds_ms: NDArray[np.float64]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.rounds_ms))

    def ratio_to(self, other: Timing) -> tuple[float, float, float]:
        """other / self, pair by pair: median, 10th and 90th percentile. Above 1: self is faster."""
        ratios = other.rounds_ms / self.rounds_ms
        low, middle, high = np.percentile(ratios, [10, 50, 90])
        return float(middle), float(low), float(high)


def time_models(
    models: Sequence[OnnxModel], runtime: Runtime, profile: Profile
) -> Sequence[Timing]:
    """Time models at the profile: open side by side or, where they are large, one at a time."""
    if fit_together(models):
        return take_turns([Runner(model, runtime) for model in models], profile)
    return take_turns_alone([partial(Runner, model, runtime) for model in models], profile)


def fit_together(models: Sequence[OnnxModel]) -> bool:
    """Whether models are small enough to be open side by side."""
    return sum(model.size_bytes for model in models) <= SIDE_BY_SIDE_BYTES


def take_turns(
    runners: Sequence[Runs], profile: Profile, *, rounds: int = 15, round_seconds: float = 0.05
) -> list[Timing]:
    """Time the runners in turns, each for about `round_seconds` in every round.

    Their order is drawn anew for every round, or whatever else runs at the pace of the rounds would
    always meet the same runner.
    """
    feeds = [runner.taken(profile.feeds) for runner in runners]
    counts = [
        _runs_in(round_seconds, runner, taken) for runner, taken in zip(runners, feeds, strict=True)
    ]

    def turn(at: int) -> float:
        return float(np.median([_once_ms(runners[at], feeds[at]) for _ in range(counts[at])]))

    return _in_rounds(len(runners), rounds, turn)


def take_turns_alone(
    openers: Sequence[Callable[[], Runs]],
    profile: Profile,
    *,
    rounds: int = 5,
    round_seconds: float = 0.5,
) -> list[Timing]:
    """As `take_turns`, with every runner opened, and warmed up, anew for each of its turns.

    So no more than one is in memory; there are fewer turns, but longer ones.
    """

    def turn(at: int) -> float:
        runner = openers[at]()
        taken = runner.taken(profile.feeds)
        count = _runs_in(round_seconds, runner, taken)
        return float(np.median([_once_ms(runner, taken) for _ in range(count)]))

    return _in_rounds(len(openers), rounds, turn)


def _in_rounds(number: int, rounds: int, turn: Callable[[int], float]) -> list[Timing]:
    """A turn for each in every round; what it takes, in milliseconds, is the turn's to say."""
    found = np.zeros((number, rounds))
    rng = np.random.default_rng(0)
    for at_round in range(rounds):
        for at in rng.permutation(number):
            found[at, at_round] = turn(at)
    return [Timing(row) for row in found]


def _runs_in(seconds: float, runner: Runs, feeds: dict[str, NDArray[np.generic]]) -> int:
    """How many runs take about that long, seen while warming up."""
    once = min(_once_ms(runner, feeds) for _ in range(WARM_UP_RUNS)) / 1e3
    return max(1, min(MOST_RUNS, round(seconds / max(once, 1e-6))))


def _once_ms(runner: Runs, feeds: dict[str, NDArray[np.generic]]) -> float:
    start = time.perf_counter()
    runner.run_only(feeds)
    return (time.perf_counter() - start) * 1e3


def profile_from_data(
    data: Dataset, inputs: Sequence[Value], settings: Mapping[str, int], fixed: int | None
) -> Profile:
    """A profile with real samples: batch 1, of median length, unless `settings` says otherwise.

    `settings` holds `batch` and any symbolic dimension of an input by its name (`seq=128`). Axes
    are cut, or filled by repeating the data. Raises BadInput for names no input has.
    """
    symbols = {dim for value in inputs for dim in (value.shape or ())[1:] if isinstance(dim, str)}
    unknown = set(settings) - symbols - {"batch"}
    if unknown:
        known = ", ".join(["batch", *sorted(symbols)])
        raise BadInput(f"--profile {min(unknown)}=...: no such dimension; there is {known}")
    for name, length in settings.items():
        if length < 1:
            raise BadInput(f"--profile {name}={length}: must be at least 1")
    batch = fixed or settings.get("batch", 1)
    if batch != settings.get("batch", batch):
        raise BadInput(f"--profile batch={settings['batch']}: the model fixes its batch at {batch}")
    sample = next(iter(data.batches(data.typical()[:batch], batch)))
    feeds = {}
    for value in inputs:
        feed = sample.feeds[value.name]
        dims = value.shape or (None,) * feed.ndim
        lengths = [
            settings.get(dim, length) if isinstance(dim, str) else length
            for dim, length in zip(dims, feed.shape, strict=True)
        ]
        feeds[value.name] = _fitted(feed, [batch, *lengths[1:]])
    return Profile(batch, feeds)


def _fitted(feed: NDArray[np.generic], lengths: Sequence[int]) -> NDArray[np.generic]:
    """The feed cut, or filled by repeating what there is; where there is nothing, by zeros."""
    if not feed.size:
        return np.zeros(lengths, feed.dtype)
    for axis, length in enumerate(lengths):
        feed = np.take(feed, np.arange(length) % feed.shape[axis], axis=axis)
    return np.ascontiguousarray(feed)
