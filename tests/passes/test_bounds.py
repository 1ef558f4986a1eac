"""Bounds: known values, exact coverage by enumeration, and what a sample size can certify.

The enumeration needs a table of limits, one for every outcome (b, c) of n samples. `covered` says
which outcomes have a limit at or above a drop d, `coverage` weighs them under a truth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import ceil, log
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import gammaln, xlogy
from scipy.stats import betabinom, binomtest, bootstrap, dirichlet_multinomial, norm

from blockfold.passes import bounds
from blockfold.passes.bounds import (
    Bound,
    bootstrap_upper,
    bound_agreement,
    bound_paired,
    bound_scores,
    chance_to_certify,
    clopper_pearson_upper,
    paired_score_upper,
    paired_upper,
    smallest_n,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Limit = Callable[[int, int, int], float]  # worse, better, n


@cache
def exact(worse: int, better: int, n: int) -> float:
    return paired_upper(worse, better, n).upper


def trinomial(n: int, p10: float, p01: float) -> Floats:
    """Probability of every outcome, array of shape (n + 1, n + 1); 0 where b + c > n."""
    b, c = np.indices((n + 1, n + 1))
    rest = np.maximum(n - b - c, 0)
    logs = gammaln(n + 1) - gammaln(b + 1) - gammaln(c + 1) - gammaln(rest + 1)
    logs += xlogy(b, p10) + xlogy(c, p01) + xlogy(rest, max(1 - p10 - p01, 0.0))
    return np.where(b + c <= n, np.exp(logs), 0.0)


def covered(limit: Limit, n: int, d: float) -> Bools:
    """Outcomes with a limit >= d, shape (n + 1, n + 1); the limit rises with b, falls with c."""
    result = np.zeros((n + 1, n + 1), dtype=bool)
    b = 0
    for c in range(n + 1):
        while b <= n - c and limit(b, c, n) < d:
            b += 1
        result[b : n - c + 1, c] = True
    return result


def worst_coverage(limit: Limit, n: int, drops: Floats) -> float:
    """The least chance that the limit holds, over the drops given and a grid of p01 for each."""
    worst = 1.0
    for d in drops.tolist():
        held = covered(limit, n, d)
        for p01 in np.linspace(max(0.0, -d), (1 - d) / 2, 50).tolist():
            worst = min(worst, float(trinomial(n, min(p01 + d, 1.0), p01)[held].sum()))
    return worst


def score(b: float, c: float, n: int, d: float) -> float:
    """Tango's statistic with the nuisance found by maximising the likelihood numerically."""

    def loss(q: float) -> float:
        return -float(xlogy(b, q + d) + xlogy(c, q) + xlogy(n - b - c, 1 - 2 * q - d))

    low, high = max(0.0, -d), (1 - d) / 2
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    q = min([low, high, float(best.x)], key=loss)
    return float((b - c - n * d) / np.sqrt(n * (2 * q + d * (1 - d))))


# ---- proportions


@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(
    ("failures", "n"), [(0, 1), (0, 30), (1, 30), (7, 30), (29, 30), (40, 900)]
)
def test_clopper_pearson_is_scipys_exact_interval(failures: int, n: int, level: float) -> None:
    interval = binomtest(failures, n, alternative="less").proportion_ci(level, method="exact")
    assert clopper_pearson_upper(failures, n, level) == pytest.approx(interval.high, rel=1e-10)


def test_clopper_pearson_at_the_ends() -> None:
    assert clopper_pearson_upper(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59), rel=1e-12)
    assert clopper_pearson_upper(12, 12) == 1.0


# ---- the asymptotic score limit


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((1, 7, 21), -0.517, -0.026),  # Bentur et al. 2009 in Fagerland et al. 2014
        ((6, 16, 161), -0.1240, -0.0054),  # Cavo et al. 2012, R package contingencytables
    ],
)
def test_score_limit_gives_the_published_intervals(
    table: tuple[int, int, int], low: float, high: float
) -> None:
    worse, better, n = table
    digits = 0.0005 if n == 21 else 0.00005
    assert paired_score_upper(worse, better, n, 0.975) == pytest.approx(high, abs=digits)
    assert -paired_score_upper(better, worse, n, 0.975) == pytest.approx(low, abs=digits)


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize(
    ("worse", "better", "n"),
    [(0, 0, 50), (3, 0, 50), (0, 3, 50), (10, 4, 50), (2, 30, 50), (2.5, 1.25, 40), (60, 45, 5000)],
)
def test_score_limit_is_the_root_of_the_statistic(
    worse: float, better: float, n: int, level: float
) -> None:
    z = float(norm.ppf(level))
    root = brentq(lambda d: score(worse, better, n, d) + z, (worse - better) / n + 1e-9, 1 - 1e-9)
    assert paired_score_upper(worse, better, n, level) == pytest.approx(root, abs=2e-6)


def test_score_limit_without_change_has_a_closed_form() -> None:
    z = float(norm.ppf(0.95))
    assert paired_score_upper(0, 0, 300) == pytest.approx(z**2 / (300 + z**2), rel=1e-12)


def test_score_limit_of_arrays_is_that_of_their_numbers() -> None:
    worse, better = np.arange(6.0)[:, None], np.array([0.0, 2.5, 20.0])
    limits = paired_score_upper(worse, better, 40)
    assert limits.shape == (6, 3)
    for index, limit in np.ndenumerate(limits):
        assert limit == paired_score_upper(float(worse[index[0], 0]), float(better[index[1]]), 40)
    assert (np.diff(limits, axis=0) > 0).all()
    assert (np.diff(limits, axis=1) < 0).all()


# ---- the exact paired limit


def test_exact_limit_rises_with_worse_and_falls_with_better() -> None:
    table = np.full((11, 11), np.nan)
    for b in range(11):
        for c in range(11 - b):
            table[b, c] = exact(b, c, 10)
    assert np.nanmin(np.diff(table, axis=0)) > 1e-3
    assert np.nanmax(np.diff(table, axis=1)) < -1e-3
    assert exact(10, 0, 10) == 1.0
    assert np.nanmin(table) > -1


def test_exact_limit_covers_at_ten_samples_where_it_is_hardest() -> None:
    """The hardest drops lie just above an attained limit: all of these, so the level is reached."""
    attained = sorted({exact(b, c, 10) for b in range(11) for c in range(11 - b)} - {1.0})
    worst = worst_coverage(exact, 10, np.array(attained) + 1e-9)
    assert 0.95 - 1e-9 <= worst < 0.951


@pytest.mark.parametrize(("n", "drops"), [(25, [-0.1, 0.05, 0.3]), (40, [0.01, 0.08])])
def test_exact_limit_covers(n: int, drops: list[float]) -> None:
    assert worst_coverage(exact, n, np.array(drops)) >= 0.95 - 1e-9


def test_coverage_check_fails_for_bounds_that_are_too_small() -> None:
    """Negative control: the checker sees the asymptotic limit and a barely lower exact one."""
    attained = sorted({exact(b, c, 10) for b in range(11) for c in range(11 - b)} - {1.0})
    assert worst_coverage(paired_score_upper, 10, np.array([0.06, 0.2])) < 0.94
    assert worst_coverage(lambda *a: exact(*a) - 0.01, 10, np.array(attained) - 1e-9) < 0.945
    assert worst_coverage(lambda *_: 1.0, 10, np.array([0.2])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("worse", "better", "n", "level"),
    [
        (0, 0, 12, 0.95),
        (2, 1, 12, 0.95),
        (1, 4, 12, 0.95),
        (7, 1, 12, 0.9),
        (2, 3, 7, 0.5),  # rejected and accepted drops alternate: no bisection finds the last one
        (1, 2, 4, 0.8),
    ],
)
def test_exact_limit_is_the_last_drop_that_is_not_rejected(
    worse: int, better: int, n: int, level: float
) -> None:
    """Against p-values from the whole table, an own statistic and an even grid of p01."""
    b, c = np.indices((n + 1, n + 1))

    def p_value(d: float) -> float:
        linear = (2 * n - b + c) * d - b - c
        q = (np.sqrt(np.maximum(linear**2 + 8 * n * c * d * (1 - d), 0)) - linear) / (4 * n)
        statistic = (b - c - n * d) / np.sqrt(n * (2 * q + d * (1 - d)))
        assert statistic[worse, better] == pytest.approx(score(worse, better, n, d), abs=1e-5)
        good = statistic <= statistic[worse, better] + 1e-9
        nuisance = np.linspace(max(0.0, -d), (1 - d) / 2, 300).tolist()
        return max(float(trinomial(n, p01 + d, p01)[good].sum()) for p01 in nuisance)

    upper = paired_upper(worse, better, n, level).upper
    above = upper + 1e-6 + np.linspace(0, 0.99 - upper, 60) ** 2
    assert max(p_value(d) for d in above.tolist()) <= 1 - level
    assert max(p_value(upper - step) for step in (1e-5, 1e-4, 1e-3)) > 0.999 * (1 - level)


@pytest.mark.parametrize("n", [1, 30, 700])
def test_exact_limit_has_a_closed_form_where_everything_got_better(n: int) -> None:
    """Only this outcome is so good; its chance p01^n is greatest with no sample unchanged."""
    assert exact(0, n, n) == pytest.approx(1 - 2 * 0.05 ** (1 / n), abs=2e-6 / n)


@pytest.mark.parametrize(("n", "d"), [(20, -0.3), (300, 0.05), (300, -0.01)])
def test_chance_of_a_region_is_its_sum_over_the_table(n: int, d: float) -> None:
    edge = np.random.default_rng(n).integers(-1, n, n + 1)
    edge = np.minimum(np.sort(edge), n - np.arange(n + 1))
    region = np.arange(n + 1)[:, None] <= edge
    q = np.linspace(max(0.0, -d), (1 - d) / 2, 9)
    expected = [trinomial(n, p01 + d, p01)[region].sum() for p01 in q.tolist()]
    np.testing.assert_allclose(bounds._chance(edge, n, d, q), expected, rtol=0, atol=3e-12)


@pytest.mark.parametrize("n", [5, 40, 150])
def test_exact_limit_is_never_below_clopper_pearson_where_nothing_got_better(n: int) -> None:
    for worse in (0, 1, n // 3, n):
        assert exact(worse, 0, n) >= clopper_pearson_upper(worse, n)


def test_exact_limit_tends_to_the_score_limit() -> None:
    assert exact(40, 25, 2_000) == pytest.approx(paired_score_upper(40, 25, 2_000), rel=0.01)
    assert exact(40, 25, 2_000) > paired_score_upper(40, 25, 2_000)


def test_the_result_says_how_it_was_found() -> None:
    small, large = paired_upper(3, 1, 200), paired_upper(3, 1, 2_001, 0.9)
    assert small == Bound(0.01, exact(3, 1, 200), 0.95, "exact paired score", certified=True)
    upper = paired_score_upper(3, 1, 2_001, 0.9)
    assert large == Bound(2 / 2_001, upper, 0.9, "paired score", certified=False)


# ---- the bootstrap


@pytest.mark.parametrize(("statistic", "n"), [(np.mean, 12), (np.mean, 1_500), (np.var, 40)])
def test_bootstrap_agrees_with_scipys(statistic: Callable[..., Any], n: int) -> None:
    scores = np.random.default_rng(n).exponential(size=n)
    theirs = bootstrap(
        (scores,), statistic, n_resamples=20_000, confidence_level=0.95, alternative="less",
        method="BCa", batch=500, rng=np.random.default_rng(0),
    )  # fmt: skip
    ours = bootstrap_upper(scores, statistic, draws=20_000)
    assert ours == pytest.approx(
        theirs.confidence_interval.high, abs=0.06 * float(theirs.standard_error)
    )


def test_bootstrap_covers_a_skewed_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    samples = rng.exponential(size=(300, 40))
    limits = {level: [bootstrap_upper(s, level=level, draws=300) for s in samples]
              for level in (0.7, 0.95)}  # fmt: skip
    held = {level: float((np.array(limits[level]) >= 1.0).mean()) for level in limits}
    assert 0.91 < held[0.95] < 0.98
    assert 0.62 < held[0.7] < 0.77  # a limit of another level is told apart


def test_bootstrap_moves_with_its_scores_and_its_seed() -> None:
    scores = np.random.default_rng(1).exponential(size=60)
    upper = partial(bootstrap_upper, draws=500)
    assert upper(scores) == upper(scores)
    assert upper(scores) != upper(scores, seed=1)
    assert upper(3 * scores - 2) == pytest.approx(3 * upper(scores) - 2, rel=1e-9)
    assert upper(scores, level=0.99) > upper(scores) > scores.mean() > upper(scores, level=0.05)


def test_bootstrap_takes_rows_and_any_statistic() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(5, 50, 80).astype(float)
    rows = np.stack([rng.exponential(size=80) * tokens, tokens], axis=1)

    def perplexity(rows: Floats) -> float:
        return float(np.exp(rows[:, 0].sum() / rows[:, 1].sum()))

    bound = bound_scores(rows, perplexity, draws=500)
    assert bound.upper > bound.estimate == perplexity(rows)
    assert (bound.method, bound.certified) == ("BCa bootstrap", False)
    swapped = bootstrap_upper(rows[:, ::-1].copy(), perplexity, draws=500)
    assert swapped != pytest.approx(bound.upper, rel=0.01)


def test_bootstrap_of_degenerate_scores_is_stated() -> None:
    calls: list[int] = []

    def mean(rows: Floats) -> float:
        calls.append(len(rows))
        return float(rows.mean())

    assert bootstrap_upper(np.full(9, 0.1), mean) == mean(np.full(9, 0.1))
    assert calls == [9, 9]  # nothing was resampled
    assert bootstrap_upper(np.array([0.0, 1.0]), draws=50) == 1.0
    one_loss = np.zeros(50)
    one_loss[7] = 1.0
    assert 0.02 < bootstrap_upper(one_loss, draws=500) < 0.2
    assert bootstrap_upper(np.arange(9.0), lambda _: 3.0, draws=50) == 3.0
    assert bootstrap_upper(np.arange(9.0), np.max, level=0.9999, draws=50) == 8.0


# ---- bounds from outcomes


def test_bounds_from_outcomes_count_what_they_say() -> None:
    before = np.array([True] * 30 + [False] * 10)
    after = before.copy()
    after[:4], after[-1:] = False, True
    assert bound_paired(before, after) == paired_upper(4, 1, 40)
    assert bound_paired(after, before) == paired_upper(1, 4, 40)
    upper = clopper_pearson_upper(5, 40)
    assert bound_agreement(before == after) == Bound(0.125, upper, 0.95, "Clopper-Pearson", True)


# ---- sample sizes


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("max_drop", [0.5, 0.1, 0.03, 0.01, 1 - 0.05 ** (1 / 299), 1e-3, 1e-5])
def test_smallest_n_is_where_clopper_pearson_first_certifies(max_drop: float, level: float) -> None:
    n = smallest_n(max_drop, level)
    assert abs(n - ceil(log(1 - level) / log(1 - max_drop))) <= (max_drop == 1 - 0.05 ** (1 / 299))
    assert clopper_pearson_upper(0, n, level) <= max_drop < clopper_pearson_upper(0, n - 1, level)


@pytest.mark.parametrize(
    ("max_drop", "level", "n"),
    [
        (0.01, 0.95, 299),
        (0.03, 0.95, 99),
        (0.12, 0.95, 25),  # 24 for a proportion
        (0.05, 0.99, 106),  # 90 for a proportion
        (0.0014, 0.95, 2_001),  # here the limit stops being exact
        (0.001, 0.95, 2_703),
    ],
)
def test_smallest_n_is_where_the_paired_limit_first_certifies(
    max_drop: float, level: float, n: int
) -> None:
    assert smallest_n(max_drop, level, paired=True) == n
    assert paired_upper(0, 0, n, level).upper <= max_drop
    assert paired_upper(0, 0, n - 1, level).upper > max_drop


@pytest.mark.parametrize("max_drop", [0.02, 0.06, 0.15])
def test_chance_to_certify_is_the_predictive_probability(max_drop: float) -> None:
    """Against the sum over every outcome, Dirichlet-multinomial and beta-binomial."""
    seen, n = (2, 1, 97), 60
    outcomes = np.array([(b, c, n - b - c) for b in range(n + 1) for c in range(n + 1 - b)])
    chances = np.asarray(dirichlet_multinomial.pmf(outcomes, np.array(seen) + 0.5, np.array(n)))
    assert chances.sum() == pytest.approx(1)
    limits = paired_score_upper(outcomes[:, 0], outcomes[:, 1], n)
    single = np.array([clopper_pearson_upper(int(b), n) for b in outcomes[:, 0]])
    limits = np.where(outcomes[:, 1] == 0, np.maximum(limits, single), limits)
    paired = chance_to_certify(*seen[:2], sum(seen), n, max_drop, draws=40_000)
    assert paired == pytest.approx(chances[limits <= max_drop].sum(), abs=0.01)

    alone = np.asarray(betabinom.pmf(np.arange(n + 1), n, 2.5, 98.5))
    single = np.array([clopper_pearson_upper(b, n) for b in range(n + 1)])
    agreement = chance_to_certify(2, 0, 100, n, max_drop, paired=False, draws=40_000)
    assert agreement == pytest.approx(alone[single <= max_drop].sum(), abs=0.01)


def test_chance_to_certify_knows_too_small_a_sample() -> None:
    """With next to no change ever seen, what decides is whether n_certify reaches smallest_n."""
    for paired in (True, False):
        seen = partial(chance_to_certify, 0, 0, 200_000, paired=paired)
        assert seen(smallest_n(0.01) - 1, 0.01) < 0.01
        assert seen(smallest_n(0.01), 0.01) > 0.98


def test_chance_to_certify_follows_the_evidence() -> None:
    chance = partial(chance_to_certify, n_select=400, n_certify=800, max_drop=0.02)
    assert 0.02 < chance(6, 2) < 0.98
    assert chance(6, 2) == chance(6, 2)
    assert chance(6, 2) != chance(6, 2, seed=1)
    assert chance(3, 2) > chance(6, 2) > chance(12, 2)
    assert chance(6, 6) > chance(6, 2) > chance(6, 0)
    assert chance(6, 2, max_drop=0.03) > chance(6, 2) > chance(6, 2, n_certify=300)
    assert chance(6, 2) > chance(6, 2, level=0.99)


# ---- bad arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clopper_pearson_upper(0, 0), "at least 1 sample"),
        (lambda: clopper_pearson_upper(-1, 5), "counts must be"),
        (lambda: clopper_pearson_upper(6, 5), "counts must be"),
        (lambda: clopper_pearson_upper(1, 5, 1.0), "level must lie"),
        (lambda: paired_upper(3, 3, 5), "counts must be"),
        (lambda: paired_score_upper(float("nan"), 0, 5), "counts must be"),
        (lambda: paired_score_upper(np.array([0, 4]), np.array([0, 2]), 5), "counts must be"),
        (lambda: bootstrap_upper(np.ones(1)), "2 samples"),
        (lambda: bootstrap_upper(np.ones(0)), "at least 1 sample"),
        (lambda: bootstrap_upper(np.arange(5.0), draws=0), "1 draw"),
        (lambda: bootstrap_upper(np.array([0.0, np.nan])), "finite"),
        (lambda: bootstrap_upper(np.arange(5.0), lambda _: np.inf), "finite"),
        (lambda: bound_paired(np.ones(3, bool), np.ones(4, bool)), "differ in shape"),
        (lambda: bound_agreement(np.ones(0, bool)), "at least 1 sample"),
        (lambda: smallest_n(0.0), "max_drop must lie"),
        (lambda: smallest_n(1.0), "max_drop must lie"),
        (lambda: smallest_n(0.1, 0.0), "level must lie"),
        (lambda: chance_to_certify(3, 3, 5, 10, 0.1), "counts must be"),
        (lambda: chance_to_certify(1, 0, 5, 0, 0.1), "at least 1 sample"),
        (lambda: chance_to_certify(1, 1, 5, 10, 0.1, paired=False), "unless paired"),
        (lambda: chance_to_certify(1, 1, 5, 10, 0.1, draws=0), "1 draw"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_exact_range_is_as_documented() -> None:
    assert bounds.EXACT_UP_TO == 2_000
    assert paired_upper(0, 0, bounds.EXACT_UP_TO).certified
    assert not paired_upper(0, 0, bounds.EXACT_UP_TO + 1).certified
