"""What a comparison with peers finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """A model beside the original: shares left, latency ratio, damage on the certify split.

    `latency` is the median of the rounds' ratios, above 1 where it is faster, with the 10th and
    90th percentile; `interval` is 95 % of the damage.
    """

    parameters: float
    flops: float
    size_bytes: float
    latency: tuple[float, float, float]
    damage: float
    interval: tuple[float, float]
    reached: float


@dataclass(frozen=True)
class Row:
    """One method: what it removed, what that cost, and the figures of what came out.

    `passes` is its processor time in plain passes over all the data, `peak_ratio` its peak of
    memory by that of a plain pass. `why_not` says why there are no figures, else it is None.
    """

    method: str
    why_not: str | None
    blocks: float
    replaced: tuple[str, ...]
    passes: float
    peak_ratio: float
    figures: Figures | None


@dataclass(frozen=True)
class Peers:
    """All rows of one model; `unit` is what damages are of."""

    name: str
    unit: str
    samples: int
    original: float
    remove: int
    rows: list[Row]
