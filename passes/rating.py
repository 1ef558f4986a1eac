"""Rating: one number for how little redundant a span is, by any metric of the survey.

Published methods choose their blocks by one, and the search may shortlist its spans by one. What
a number foretells of damage is measured by `python -m blockfold.tools.benchmarks.predictors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from ..calibration.metrics.cka import LEAST_UNBIASED
from .score import Redundancy
from .similarity import Likeness

Metric = Literal[
    "block-redundancy",
    "block-influence",
    "angular",
    "identity-error",
    "affine-r2",
    "nbl",
    "cka",
    "sliced-w2",
    "modularity",
    "entropy",
]
METRICS: tuple[Metric, ...] = get_args(Metric)

UNTOLD = (
    f"{LEAST_UNBIASED} samples to fit on; modularity also labels or outputs of classes, entropy "
    "rectifiers inside"
)
"""What a metric that is told of no span may lack."""

MOMENTS: dict[Metric, Callable[[Redundancy], float]] = {
    "block-redundancy": lambda found: -found.block_redundancy,
    "block-influence": lambda found: found.block_influence,
    "angular": lambda found: found.angular_distance,
    "identity-error": lambda found: found.identity_error,
    "affine-r2": lambda found: 1.0 - found.affine_r2,
    "nbl": lambda found: found.nbl_bound,
}

BATCHES: dict[Metric, Callable[[Likeness], float | None]] = {
    "cka": lambda found: 1.0 - found.cka,
    "sliced-w2": lambda found: found.max_sliced_wasserstein,
    "modularity": lambda found: found.modularity_gain,
    "entropy": lambda found: found.activation_entropy,
}


def rating(metric: Metric, found: Redundancy) -> float | None:
    """What a metric says of a span, more meaning less redundant; None where it says nothing."""
    if metric in MOMENTS:
        return MOMENTS[metric](found)
    return None if found.likeness is None else BATCHES[metric](found.likeness)
