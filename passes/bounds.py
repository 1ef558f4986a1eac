"""How sure a measured drop is: one-sided upper limits, and what a sample of a given size can prove.

The unit is the sample. `worse` counts samples right before and wrong after, `better` the reverse; a
drop of accuracy is p10 - p01, the difference of their probabilities. Exact limits hold their level
for every sample size and every truth and are called certified; all others are estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite, log, log1p, pi
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, betaincinv, gammaln, ndtr, ndtri, xlog1py, xlogy

Floats = NDArray[np.float64]
Counts = NDArray[Any]

EXACT_UP_TO = 2_000  # samples; the exact paired limit's cost grows with them, its gain shrinks
NEGLIGIBLE = 1e-12  # probability left out of a sum, and added back to it


@dataclass(frozen=True)
class Bound:
    """A drop, and the limit it stays below: `estimate` on the samples seen, one-sided `upper`.

    Both are in the metric's own unit. `method` names the computation. `certified`: the limit holds
    with probability >= `level` whatever the truth is; otherwise only as the samples become many.
    """

    estimate: float
    upper: float
    level: float
    method: str
    certified: bool


def clopper_pearson_upper(failures: int, n: int, level: float = 0.95) -> float:
    """Exact one-sided upper limit of a binomial proportion, in (0, 1].

    The p with P(X <= failures) = 1 - level for X ~ binomial(n, p), which is the `level` quantile
    of beta(failures + 1, n - failures); 1 if all failed. Clopper & Pearson (1934), Biometrika 26.

    Raises ValueError unless 0 <= failures <= n, n >= 1 and 0 < level < 1.
    """
    _check(n, level, failures)
    return float(_clopper_pearson(np.array(failures), n, level))


@overload
def paired_score_upper(worse: float, better: float, n: int, level: float = 0.95) -> float: ...
@overload
def paired_score_upper(worse: Counts, better: Counts, n: int, level: float = 0.95) -> Floats: ...
def paired_score_upper(
    worse: float | Counts, better: float | Counts, n: int, level: float = 0.95
) -> float | Floats:
    """Asymptotic one-sided upper limit of the drop p10 - p01, in [-1, 1].

    The d at which T(d) = (worse - better - n d) / sqrt(n (2 q + d (1 - d))) is -z(level), q being
    the maximum likelihood p01 under p10 - p01 = d. T falls in d: bisection, rounded up. Counts may
    be fractional; arrays broadcast, shape (...) to shape (...). It is not certified: with few
    discordant samples it covers less than its level. Tango (1998), Statistics in Medicine 17,
    891-908.

    Raises ValueError unless worse, better >= 0, worse + better <= n, n >= 1 and 0 < level < 1.
    """
    _check(n, level, worse, better)
    high = np.ones(np.broadcast_shapes(np.shape(worse), np.shape(better)))
    low = -high
    for _ in range(60):
        middle = (low + high) / 2
        above = _tango(worse, better, n, middle) <= -ndtri(level)
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return high if high.ndim else float(high)


def paired_upper(worse: int, better: int, n: int, level: float = 0.95) -> Bound:
    """Upper limit of the drop p10 - p01 of a paired 0/1 score; `method` says how it was found.

    Up to EXACT_UP_TO samples the exact unconditional limit, the supremum of all d with

        max over p01 of P(T(B, C; d) <= T(worse, better; d)) > 1 - level,

    (B, C) ~ trinomial(n; p01 + d, p01) and T the score statistic of `paired_score_upper`; above,
    `paired_score_upper`, which is not certified. Takes about 0.5 s at n = 800, 1 to 2 s at 2,000.
    Tango (1998), Statistics in Medicine 17, 891-908; Sidik (2003), Statistics in Medicine 22,
    265-278.

    Raises ValueError unless worse, better >= 0, worse + better <= n, n >= 1 and 0 < level < 1.
    """
    _check(n, level, worse, better)
    estimate = float(worse - better) / n
    if n <= EXACT_UP_TO:
        upper = _exact_paired_upper(worse, better, n, level)
        return Bound(estimate, upper, level, "exact paired score", certified=True)
    upper = paired_score_upper(worse, better, n, level)
    return Bound(estimate, upper, level, "paired score", certified=False)


def bootstrap_upper(
    scores: Floats,
    statistic: Callable[[Floats], Any] = np.mean,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """One-sided upper limit of a statistic by the bias-corrected accelerated bootstrap (BCa).

    `scores` has shape (samples, ...); `statistic` maps such an array with any number of samples to
    a number. The limit is the quantile Phi(z0 + z / (1 - a z)), z = z0 + z(level), of `draws`
    resampled values, z0 being their median bias and a the acceleration, from a jackknife over at
    most 1,000 random groups of samples. Samples that are all equal show no spread, and the limit
    is the statistic itself. Memory: one resample. Efron (1987), JASA 82, 171-185.

    Raises ValueError for fewer than 2 samples, values that are not finite, draws < 1, a bad level.
    """
    n = len(scores)
    _check(n, level)
    if n < 2 or draws < 1:
        raise ValueError(f"the bootstrap needs 2 samples and 1 draw, got {n} and {draws}")
    seen = float(statistic(scores))
    if not np.isfinite(scores).all() or not isfinite(seen):
        raise ValueError("the bootstrap needs finite scores and a finite statistic")
    if (scores == scores[0]).all():
        return seen
    rng = np.random.default_rng(seed)
    resampled = np.array([statistic(scores[rng.integers(n, size=n)]) for _ in range(draws)])
    groups = np.array_split(rng.permutation(n), min(n, 1_000))
    left_out = np.array([statistic(np.delete(scores, group, axis=0)) for group in groups])
    fall = left_out.mean() - left_out
    acceleration = (fall**3).sum() / max(6 * (fall**2).sum() ** 1.5, 1e-300)
    below = ((resampled < seen).mean() + (resampled <= seen).mean()) / 2
    bias = ndtri(np.clip(below, 0.5 / draws, 1 - 0.5 / draws))
    z = bias + ndtri(level)
    return float(np.quantile(resampled, ndtr(bias + z / max(1 - acceleration * z, 1e-12))))


def bound_agreement(agrees: NDArray[np.bool_], level: float = 0.95) -> Bound:
    """Exact bound on the share of samples that disagree; `agrees` has shape (samples,).

    Errors and source: `clopper_pearson_upper`.
    """
    n, failures = len(agrees), int(np.count_nonzero(~agrees))
    upper = clopper_pearson_upper(failures, n, level)
    return Bound(failures / n, upper, level, "Clopper-Pearson", certified=True)


def bound_paired(before: NDArray[np.bool_], after: NDArray[np.bool_], level: float = 0.95) -> Bound:
    """`paired_upper` of two runs over the same samples: which were right, both of shape (samples,).

    Raises ValueError if the shapes differ, or for the reasons of `paired_upper`.
    """
    if before.shape != after.shape:
        raise ValueError(f"paired outcomes differ in shape: {before.shape} and {after.shape}")
    worse, better = np.count_nonzero(before & ~after), np.count_nonzero(after & ~before)
    return paired_upper(int(worse), int(better), len(before), level)


def bound_scores(
    scores: Floats,
    statistic: Callable[[Floats], Any] = np.mean,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Bound:
    """`bootstrap_upper` with its estimate, not certified; same arguments, errors and source."""
    upper = bootstrap_upper(scores, statistic, level=level, draws=draws, seed=seed)
    return Bound(float(statistic(scores)), upper, level, "BCa bootstrap", certified=False)


def smallest_n(max_drop: float, level: float = 0.95, *, paired: bool = False) -> int:
    """Fewest samples with which a result without any loss gets an upper limit <= max_drop.

    For a proportion (`clopper_pearson_upper`) the least n >= ln(1 - level) / ln(1 - max_drop).
    `paired` asks the same of `paired_upper` with no sample worse or better. At level 0.95 that is
    the same n from 84 to EXACT_UP_TO, now and then 1 more below, up to 10 % fewer above; at
    0.99 it is up to 20 % more.

    Raises ValueError unless 0 < max_drop < 1 and 0 < level < 1.
    """
    _check(1, level)
    if not 0 < max_drop < 1:
        raise ValueError(f"max_drop must lie between 0 and 1, got {max_drop}")

    def limit(n: int) -> float:
        return paired_upper(0, 0, n, level).upper if paired else clopper_pearson_upper(0, n, level)

    n = ceil(log1p(-level) / log1p(-max_drop))
    if paired:
        n = min(n, EXACT_UP_TO + 1)
    while (upper := limit(n)) > max_drop:
        n = max(n + 1, int(n * upper / max_drop))  # n * limit varies little
    while n > 1 and limit(n - 1) <= max_drop:
        n -= 1
    return n


def chance_to_certify(
    worse: int,
    better: int,
    n_select: int,
    n_certify: int,
    max_drop: float,
    *,
    paired: bool = True,
    level: float = 0.95,
    draws: int = 2_000,
    seed: int = 0,
) -> float:
    """Predictive probability, in [0, 1], that `n_certify` fresh samples give a limit <= max_drop.

    Draws (p10, p01, rest) from Dirichlet(counts on n_select samples + 1/2), Jeffreys' prior, and
    counts at n_certify from each. The limit is `paired_score_upper`, a little below the exact one;
    so where nothing got better it is raised to Clopper-Pearson's, which the exact one never falls
    short of. Not `paired`: `worse` counts disagreements, `better` is 0, the limit Clopper-Pearson.

    Raises ValueError for counts that do not fit n_select, n_certify or draws < 1, or a bad level.
    """
    _check(n_select, level, worse, better)
    _check(n_certify, level)
    if draws < 1 or (better and not paired):
        raise ValueError(f"need 1 draw and no better samples unless paired, got {draws}, {better}")
    changed = (worse, better) if paired else (worse,)
    rng = np.random.default_rng(seed)
    posterior = rng.dirichlet(np.array([*changed, n_select - worse - better]) + 0.5, draws)
    fresh = rng.multinomial(n_certify, posterior)
    upper = _clopper_pearson(fresh[:, 0], n_certify, level)
    if paired:
        score = paired_score_upper(fresh[:, 0], fresh[:, 1], n_certify, level)
        alone = (fresh[:, 1] == 0) & (n_certify <= EXACT_UP_TO)
        upper = np.where(alone, np.maximum(score, upper), score)
    return float((upper <= max_drop).mean())


def _check(n: int, level: float, *counts: float | Counts) -> None:
    if n < 1:
        raise ValueError(f"need at least 1 sample, got {n}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if not (all(np.all(np.asarray(c) >= 0) for c in counts) and np.all(sum(counts) <= n)):
        raise ValueError(f"counts must be >= 0 and sum to at most {n} samples, got {counts}")


def _clopper_pearson(failures: Counts, n: int, level: float) -> Floats:
    limit: Floats = betaincinv(failures + 1.0, np.maximum(n - failures, 1.0), level)
    return np.where(failures < n, limit, 1.0)


def _tango(b: float | Counts, c: float | Counts, n: int, d: float | Floats) -> Floats:
    """Score of p10 - p01 = d at counts (b, c); rises with b, falls with c and d. Broadcasts."""
    linear = b + c - (2 * n - b + c) * d
    q = (linear + np.sqrt(np.maximum(linear**2 + 8 * n * c * d * (1 - d), 0))) / (4 * n)
    return np.asarray((b - c - n * d) / np.sqrt(np.maximum(n * (2 * q + d * (1 - d)), 1e-300)))


def _exact_paired_upper(worse: int, better: int, n: int, level: float) -> float:
    """Walk down from d = 1 while every d on the way is rejected; no step can jump a non-rejected d.

    For d in [low, high] the region {T(.; d) <= T(seen; d)} lies in {T(.; high) <= T(seen; low)}.
    With (b, c) that set also holds (b - 1, c) and (b, c + 1), so its probability falls with d: its
    maximum at d = low bounds the p-value of the whole interval.
    """
    high, step, suspect = 1.0, 0.1, 0.0
    while step > 1e-6 / n:
        low = max(high - step, -1.0)
        edge = _edge(n, high, float(_tango(worse, better, n, low)) + 1e-9)
        suspect = min(max(suspect, -low), (1 - low) / 2)
        chance = _chance(edge, n, low, np.array([suspect])).item()  # where the last one failed
        if chance <= 1 - level:
            chance, suspect = _greatest_chance(edge, n, low, 1 - level)
        if chance <= 1 - level:
            high, step = low, 2 * step
        else:
            step /= 2
    return high


def _edge(n: int, d: float, score: float) -> Counts:
    """For each c = 0 .. n the greatest b with T(b, c; d) <= score, or -1; shape (n + 1,)."""
    c = np.arange(n + 1)
    low, high = np.full(n + 1, -1), n - c
    for _ in range((n + 1).bit_length()):
        middle = (low + high + 1) // 2
        inside = _tango(middle, c, n, d) <= score
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return low


def _chance(edge: Counts, n: int, d: float, q: Floats) -> Floats:
    """P(B <= edge[C]) for (B, C) ~ trinomial(n; q + d, q), rounded up; q and result: shape (m,)."""
    tail = log(2 / NEGLIGIBLE)
    reach = tail / 3 + np.sqrt(tail**2 / 9 + 2 * n * q * (1 - q) * tail)  # Bernstein's inequality
    first = np.ceil(np.maximum(n * q - reach, 0)).astype(int)
    size = np.floor(np.minimum(n * q + reach, n)).astype(int) - first + 1
    start = np.cumsum(size) - size
    c = np.arange(size.sum()) + np.repeat(first - start, size)
    p01 = np.repeat(q, size)
    p10 = np.clip((p01 + d) / np.maximum(1 - p01, 1e-300), 0, 1)  # given that it is not in C
    ways = gammaln(n + 1) - gammaln(c + 1) - gammaln(n - c + 1)
    of_c = np.exp(ways + xlogy(c, p01) + xlog1py(n - c, -p01))
    of_b = np.where(edge[c] < 0, 0, bdtr(np.maximum(edge[c], 0), n - c, p10))
    return np.add.reduceat(of_c * of_b, start) + NEGLIGIBLE


def _greatest_chance(edge: Counts, n: int, d: float, enough: float) -> tuple[float, float]:
    """Maximum of `_chance` over the nuisance q = p01, and where: a grid, then every peak refined.

    The grid is even in the angle arcsin sqrt(q), a fifth of a standard deviation apart. Nothing is
    refined that has passed `enough` already or stays clearly below it.
    """
    low, high = max(0.0, -d), (1 - d) / 2
    angle = np.linspace(0, pi / 2, 3 + int(8 * np.sqrt(n * (high - low))))
    q = low + (high - low) * np.sin(angle) ** 2
    chance = _chance(edge, n, d, q)
    beside = np.pad(chance, 1)
    at = np.flatnonzero((chance >= beside[:-2]) & (chance >= beside[2:]))
    centre, width = q[at], q[np.minimum(at + 1, len(q) - 1)] - q[np.maximum(at - 1, 0)]
    top, slack = chance[at], 0.05
    while slack > 1e-5 and top.max() <= enough:
        near = top > (1 - slack) * enough
        if not near.any():
            break
        centre, width = centre[near], width[near]
        q = np.clip(centre + width * np.linspace(-1, 1, 17)[:, None], low, high)
        chance = _chance(edge, n, d, q.ravel()).reshape(q.shape)
        best = chance.argmax(axis=0), np.arange(len(centre))
        centre, top, width, slack = q[best], chance[best], width / 8, slack / 16
    return float(top.max()), float(centre[top.argmax()])
