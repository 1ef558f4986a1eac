"""Search: where it begins, and that it goes on from there to where the promise breaks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from blockfold.ir.spans import Span
from blockfold.passes.compose import Label
from blockfold.passes.probe import Option
from blockfold.passes.search import BRACKET, WIDTH, first_places
from blockfold.passes.surrogates import Wish


def wish(at: int) -> Wish:
    ends = f"h{at}", f"h{at + 1}"
    span = Span("x", at, at + 1, *ends, -1, 3, "float32", "s", 1.0, frozenset(), ())
    return Wish(span, "affine")


def options(slope: float) -> list[Option]:
    """Surrogates that do `slope` times their damage of harm, on the whole, and one not measured."""
    damages = np.arange(1, 7) / 100
    lucky = np.array([0, 2, 0, 2, 0, 2])
    scale = slope * damages.sum() / (lucky @ damages)
    measured = [
        Option(wish(at), 0.1, damage, damage, scale * luck * damage)
        for at, (damage, luck) in enumerate(zip(damages, lucky, strict=True))
    ]
    return [*measured, Option(wish(9), 5.0, 9.0, 9.0, None)]


def labels(damages: Sequence[float]) -> list[Label]:
    return [Label((wish(at),), damage, (float(at),)) for at, damage in enumerate(damages)]


@pytest.mark.parametrize("slope", [0.25, 0.5, 1.0])
def test_the_first_sets_bracket_the_harm_allowed(slope: float) -> None:
    damages = np.arange(1, 101) / 100
    allowed = 0.2
    places = first_places(labels(damages.tolist()), options(slope), allowed)
    harms = slope * damages[places]
    assert harms == pytest.approx([share * allowed for share in BRACKET], abs=slope * 0.0101)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("slope", [0.0, 1e-6, 1e6])
def test_where_harm_tells_nothing_they_are_spread(count: int, slope: float) -> None:
    places = first_places(labels([0.1] * count), options(slope), 0.01)
    assert places == sorted(set(places))
    assert all(0 <= at < count for at in places)
    assert len(places) >= min(count, WIDTH - 1)


def test_nothing_measured_is_no_error() -> None:
    assert len(first_places(labels([0.1] * 20), [], 0.01)) == WIDTH
