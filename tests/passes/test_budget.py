"""Budgets: what is refused, which trial is taken, and what counts as reached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blockfold.calibration.quality import Scores
from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Span
from blockfold.passes.budget import DEFAULT_MAX_DROP, WORTH_CONFIRMING, Budget
from blockfold.passes.recipe import Recipe
from blockfold.passes.surrogates import Wish
from blockfold.passes.task import make_task
from blockfold.passes.trial import Trial, tempered
from blockfold.passes.verify import Forecast, forecast
from blockfold.tests.networks import labelled, residual_mlp

NONE = np.zeros(1)


def trial(
    *,
    upper: float = 0.0,
    chance: float = 1.0,
    saved: float = 1.0,
    speedup: float = 1.0,
    size: int = 100,
) -> Trial:
    scores = Scores(NONE, NONE)
    expected = Forecast(upper, chance)
    return Trial(Recipe(()), (), scores, scores, upper, expected, saved, speedup, lambda: size)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"max_drop": 1.0}, "--max-drop 1: not between 0 and 1; write 1% or 0.01"),
        ({"max_drop": 0.0}, "--max-drop 0"),
        ({"max_drop": -0.1}, "--max-drop -0.1"),
        ({"max_drop": float("nan")}, "--max-drop nan"),
        ({"speedup": 1.0}, "--speedup 1: must be above 1"),
        ({"speedup": float("nan")}, "--speedup nan"),
        ({"remove": 0}, "--remove 0: must be a positive number of blocks"),
        ({"remove": float("nan")}, "--remove nan"),
        ({"max_size_bytes": 0}, "--max-size 0: must be a positive number of bytes"),
    ],
)
def test_impossible_wishes_are_refused(wish: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        Budget.of(**wish)
    assert str(caught.value).startswith(said)


def test_without_a_wish_one_point_may_be_lost() -> None:
    assert Budget.of() == Budget(max_drop=DEFAULT_MAX_DROP)
    assert not Budget.of().has_target
    assert Budget.of(remove=1).max_drop is None
    assert Budget.of(remove=1).has_target


def test_a_promise_asks_for_a_chance() -> None:
    budget = Budget.of(max_drop=0.05)
    assert budget.allows(Forecast(0.04, 0.6), 0.6)
    assert not budget.allows(Forecast(0.04, 0.59), 0.6)
    assert Budget.of(speedup=2).allows(Forecast(1.0, 0.0), 0.6)


def test_a_promise_alone_takes_the_fastest_that_may_keep_it() -> None:
    fast, gentler = (trial(saved=2, upper=upper, chance=0.5) for upper in (0.04, 0.01))
    unlikely = trial(saved=9, chance=WORTH_CONFIRMING - 0.01)
    slow = trial(saved=1, chance=0.6)
    budget = Budget.of(max_drop=0.05)
    assert budget.ranked([slow, fast, unlikely, gentler]) == [gentler, slow]
    assert budget.ranked([unlikely]) == []
    assert budget.ranked([trial(chance=WORTH_CONFIRMING)])


def test_slower_trials_stay_only_where_they_are_likelier() -> None:
    ladder = [trial(saved=5 - at, chance=chance) for at, chance in enumerate((0.4, 0.4, 0.7, 0.5))]
    assert Budget.of(max_drop=0.05).ranked(ladder[::-1]) == [ladder[0], ladder[2]]


def test_a_target_alone_takes_the_least_damage_that_reaches_it() -> None:
    gentle, harsh = trial(speedup=1.5, upper=0.1), trial(speedup=3, upper=0.2)
    short, faster = trial(speedup=1.2, upper=0.0), trial(speedup=1.6, upper=0.1, saved=2)
    assert Budget.of(speedup=1.5).ranked([harsh, short, gentle, faster])[0] == faster
    assert Budget.of(speedup=1.5).ranked([harsh, short])[0] == harsh
    assert Budget.of(speedup=1.5).ranked([short]) == []


def test_all_wishes_bind() -> None:
    budget = Budget.of(max_drop=0.05, speedup=2, max_size_bytes=100)
    good = trial(speedup=2, size=100, upper=0.05)
    others = [
        trial(speedup=1.9, size=100),
        trial(speedup=2, size=101),
        trial(speedup=2, size=100, chance=0.1),
    ]
    assert budget.ranked([*others, good]) == [good]


def wish(blocks: float) -> Wish:
    span = Span("x", 0, 1, "x", "y", -1, 3, "float32", "b", blocks, frozenset(), ())
    return Wish(span, "affine")


@pytest.mark.parametrize(("blocks", "reached"), [(0.9, False), (1.0, True), (1.1, True)])
def test_removed_blocks_are_summed(blocks: float, reached: bool) -> None:
    made = replace(trial(), recipe=Recipe(tuple(wish(blocks / 3) for _ in range(3))))
    assert Budget.of(remove=1).reached(made) is reached


def test_a_budget_prints_as_it_is_typed() -> None:
    assert str(Budget.of(max_drop=0.01)) == "--max-drop 0.01"
    full = Budget.of(0.05, 1.5, 2, 1000)
    assert str(full) == "--max-drop 0.05 --speedup 1.5 --remove 2 --max-size 1000"


def test_the_nearest_to_a_target_come_first() -> None:
    slow, fast, gentle = trial(speedup=1.1), trial(speedup=1.9, upper=0.2), trial(speedup=1.9)
    assert Budget.of(speedup=2).nearest([slow, fast, gentle]) == [gentle, fast, slow]
    big, small = trial(size=90, upper=0.0), trial(size=60, upper=0.5)
    assert Budget.of(max_size_bytes=50).nearest([big, small]) == [small, big]
    assert Budget.of(max_drop=0.01).nearest([small, big]) == [big, small]


def test_targets_that_are_reached_are_equally_near() -> None:
    harmful, gentle = trial(speedup=3, upper=0.4), trial(speedup=2, upper=0.1)
    assert Budget.of(speedup=2).nearest([harmful, gentle]) == [gentle, harmful]


def test_a_very_likely_trial_stays_behind_a_likelier_faster_one() -> None:
    lucky, safe, unsure = (
        trial(saved=saved, chance=chance) for saved, chance in ((3, 0.99), (2, 0.95), (1, 0.7))
    )
    assert Budget.of(max_drop=0.05).ranked([unsure, safe, lucky]) == [lucky, safe]


def test_a_lucky_trial_is_taken_to_do_what_its_neighbours_do() -> None:
    """Of plans that damage the output alike, the one that happens to show no harm is no better."""
    model = residual_mlp(2)
    data = labelled(model, 400)
    source = read(model)

    def seen(worse: int, damage: float) -> Trial:
        before = np.ones(100)
        after = np.where(np.arange(100) < worse, 0.0, 1.0)
        scores = Scores(before, after)
        expected = forecast(task, scores, 0.05)
        return Trial(Recipe(()), (), scores, scores, damage, expected, 1.0, 1.0, lambda: 1)

    with open_data(data, source.inputs) as opened:
        task = make_task(source, opened, split(400), Runtime(threads=1))
        gentle, harsh, lucky = seen(1, 0.1), seen(8, 1.0), seen(0, 1.1)
        found = tempered(task, [lucky, gentle, harsh], 0.05)
    assert found[1].forecast == gentle.forecast  # 9 of 2.2 in all, so 0.4 of 0.1: no more than 1
    assert found[0].forecast.upper > lucky.forecast.upper
    assert found[0].forecast.chance < 0.5 < lucky.forecast.chance
    assert found[2].forecast == harsh.forecast  # never expected to do less than it showed
    assert tempered(task, [], 0.05) == []
