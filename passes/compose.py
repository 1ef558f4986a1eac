"""Compose: the best sets of surrogates, by dynamic programming along the chains.

Damages of single surrogates are added, which only ranks sets; what a set does is measured later. A
set is a label: its damage and what it gains (time, blocks, bytes). Of labels at the same cut, those
that at least `depth` others beat in everything are dropped. Spans never touch, so the producer of
every entry is still the original's, which is what folded surrogates need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .surrogates import Wish

MOST_LABELS = 128
"""Labels kept at one cut."""


@dataclass(frozen=True)
class Label:
    """A set of surrogates, in order, with its expected damage and its gains."""

    wishes: tuple[Wish, ...]
    damage: float
    gains: tuple[float, ...]

    def joined(self, other: Label) -> Label:
        gains = tuple(a + b for a, b in zip(self.gains, other.gains, strict=True))
        return Label(self.wishes + other.wishes, self.damage + other.damage, gains)


def compose(
    damages: dict[Wish, float], gains: Callable[[Wish], tuple[float, ...]], depth: int = 1
) -> list[Label]:
    """Sets that fewer than `depth` others beat, least damage first, the empty set left out."""
    if not damages:
        return []
    single = [Label((wish,), damage, gains(wish)) for wish, damage in damages.items()]
    nothing = Label((), 0.0, (0.0,) * len(single[0].gains))
    labels = [nothing]
    for stream in dict.fromkeys(wish.span.stream for wish in damages):
        own = [label for label in single if label.wishes[0].span.stream == stream]
        along = _along(own, nothing, depth)
        labels = _best(
            [
                one.joined(other)
                for one in labels
                for other in along
                if not any(a.span.touches(b.span) for a in one.wishes for b in other.wishes)
            ],
            depth,
        )
    return [label for label in labels if label.wishes]


def _along(single: Sequence[Label], nothing: Label, depth: int) -> list[Label]:
    """The best labels of one chain, cut by cut."""
    by_stop: dict[int, list[Label]] = {}
    for label in single:
        by_stop.setdefault(label.wishes[0].span.stop, []).append(label)
    last = max(by_stop)
    before: list[list[Label]] = []
    for cut in range(last + 1):
        found = list(before[-1]) if before else [nothing]
        for label in by_stop.get(cut, ()):
            start = label.wishes[0].span.start
            found += [one.joined(label) for one in (before[start - 1] if start else [nothing])]
        before.append(_best(found, depth))
    return before[-1]


def _best(labels: Iterable[Label], depth: int) -> list[Label]:
    """Labels that fewer than `depth` others beat; where they are many, spread over the damages."""
    kept: list[Label] = []
    gains: list[tuple[float, ...]] = []
    for label in sorted(labels, key=lambda one: (one.damage, [-gain for gain in one.gains])):
        if not gains or (np.array(gains) >= label.gains).all(axis=1).sum() < depth:
            kept.append(label)
            gains.append(label.gains)
    if len(kept) <= MOST_LABELS:
        return kept
    step = (len(kept) - 1) / (MOST_LABELS - 1)
    return [kept[round(at * step)] for at in range(MOST_LABELS)]
