"""Composing: what dynamic programming finds is what trying every set finds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from blockfold.ir.spans import Span
from blockfold.passes.compose import Label, compose
from blockfold.passes.surrogates import Form, Wish

Gain = dict[Wish, tuple[float, ...]]
FORMS: tuple[Form, ...] = ("identity", "affine")


def wish(start: int, stop: int, form: Form = "affine", stream: str = "x") -> Wish:
    ends = f"{stream}{start}", f"{stream}{stop}"
    span = Span(stream, start, stop, *ends, -1, 3, "float32", "s", 1.0, frozenset(), ())
    return Wish(span, form)


def planted(
    seed: int, streams: int = 1, units: int = 5, gains: int = 1
) -> tuple[dict[Wish, float], Gain]:
    """Every span of up to three units in two forms, with random damages and gains."""
    rng = np.random.default_rng(seed)
    wishes = [
        wish(start, stop, form, f"s{stream}")
        for stream in range(streams)
        for start in range(units)
        for stop in range(start + 1, min(start + 3, units) + 1)
        for form in FORMS
    ]
    found = {w: tuple(rng.random(gains) * (w.span.stop - w.span.start)) for w in wishes}
    return {w: float(rng.random()) for w in wishes}, found


def is_possible(wishes: tuple[Wish, ...]) -> bool:
    return not any(a.span.touches(b.span) for a, b in combinations(wishes, 2))


def every_set(damages: dict[Wish, float], gains: Gain) -> list[Label]:
    found = []
    for count in (1, 2, 3, 4):
        for chosen in combinations(damages, count):
            if is_possible(chosen):
                total = tuple(np.sum([gains[w] for w in chosen], axis=0))
                found.append(Label(chosen, sum(damages[w] for w in chosen), total))
    return found


def unbeaten(labels: list[Label]) -> set[frozenset[Wish]]:
    """Sets that no other does less damage than and gains as much as."""
    return {
        frozenset(one.wishes)
        for one in labels
        if not any(
            other.damage < one.damage and np.all(np.array(other.gains) >= one.gains)
            for other in labels
        )
    }


@pytest.mark.parametrize(("seed", "streams", "gains"), [(0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 2, 1)])
def test_it_finds_what_trying_every_set_finds(seed: int, streams: int, gains: int) -> None:
    damages, gain = planted(seed, streams, 5 if streams == 1 else 3, gains)
    found = compose(damages, gain.__getitem__)
    assert {frozenset(label.wishes) for label in found} == unbeaten(every_set(damages, gain))


def test_damages_and_gains_are_sums() -> None:
    damages, gain = planted(4)
    for label in compose(damages, gain.__getitem__):
        assert is_possible(label.wishes)
        assert label.damage == pytest.approx(sum(damages[w] for w in label.wishes))
        assert label.gains[0] == pytest.approx(sum(gain[w][0] for w in label.wishes))


def test_spans_that_share_a_cut_are_never_together() -> None:
    left, right, apart = wish(0, 1), wish(1, 2), wish(2, 3)
    found = compose(dict.fromkeys([left, right, apart], 1.0), lambda _: (1.0,))
    sets = {frozenset(label.wishes) for label in found}
    assert frozenset({left, apart}) in sets
    assert not any({left, right} <= chosen or {right, apart} <= chosen for chosen in sets)


def test_depth_keeps_the_next_best_too() -> None:
    damages = {wish(0, 1): 1.0, wish(2, 3): 2.0, wish(4, 5): 2.5}
    counts = [
        sum(len(label.wishes) == 1 for label in compose(damages, lambda _: (1.0,), depth))
        for depth in (1, 2, 3)
    ]
    assert counts == [1, 2, 3]


def test_nothing_comes_of_nothing() -> None:
    assert compose({}, lambda _: (1.0,)) == []
