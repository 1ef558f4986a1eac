"""Jobs that set finished models side by side: judge, time and rank them; none changes a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..calibration.splits import Splits, split
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from ..passes.budget import Budget
from ..passes.optimize import measure_latency, require_enough_samples
from ..passes.plan import CacheRecord, LatencyRecord, Plan
from ..passes.ranking import Candidate
from ..passes.ranking import rank as run_rank
from ..passes.verify import verify as run_verify
from .opening import (
    as_planned,
    opened_data,
    plan_beside,
    profile_of,
    read_model,
    settings_of,
    task_of,
)
from .results import Verified

__all__ = ["bench", "rank", "verify"]

if TYPE_CHECKING:
    from typing import Any

    from .opening import Model, OnnxLike


class Unlike(BadInput):
    """Two models whose inputs or outputs differ."""


def verify(
    original: Model,
    new: Model,
    data: object = None,
    *,
    max_drop: float | None = None,
    plan: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Verified:
    """Judge a new model against its original on data.

    Where the data is what the new model was made on (its plan, beside it, says so), only the rows
    that were held back count; on other data all rows do.
    """
    options = settings_of(settings)
    before, after = read_model(original), read_model(new)
    known = plan_beside(new, after, plan)
    if known is not None:
        options = as_planned(options, known)
    promise = Budget.of(max_drop).max_drop if max_drop is not None else None
    _require_alike(before, after, known)
    with opened_data(before, data, options) as opened:
        same = known is not None and known.data.sha256 == opened.digest
        if same and known is not None:
            splits = split(
                opened.samples,
                fractions=known.data.fractions,
                seed=known.data.seed,
                groups=opened.groups,
            )
        else:
            everything = np.arange(opened.samples)
            none = everything[:0]
            splits = Splits(none, none, everything, options.seed, (0.0, 0.0, 1.0))
        task = task_of(before, opened, splits, options)
        if task.output not in after.graph.outputs:
            raise BadInput(f"--output {task.output}: the new model has lost it; choose another")
        require_enough_samples(task, promise)
        verdict = run_verify(task, after, splits.certify, promise)
        return Verified(verdict, same, opened.random)


def bench(original: Model, new: Model, data: object = None, **settings: Any) -> LatencyRecord:
    """Latency of both models side by side, in turns."""
    options = settings_of(settings)
    before, after = read_model(original), read_model(new)
    if before.graph.inputs != after.graph.inputs:
        _require_alike(before, after, plan_beside(new, after, None))
    if data is None and options.random_samples is None:
        options = replace(options, random_samples=max(1, options.profile.get("batch", 1)))
    with opened_data(before, data, options) as opened:
        none = np.arange(0)
        splits = Splits(none, none, none, 0, (0.0, 0.0, 1.0))
        task = task_of(before, opened, splits, replace(options, metric="nmse", output=None))
        return measure_latency(task, after, profile_of(task, options))


def rank(models: Sequence[OnnxLike], data: object = None, **settings: Any) -> tuple[Candidate, ...]:
    """Candidate architectures by quality, similar layers and latency; see passes/ranking.

    All must take the same inputs. Raises BadInput where they do not, or without labels.
    """
    options = settings_of(settings)
    read_in = [read_model(model) for model in models]
    names = [str(m) if isinstance(m, str | os.PathLike) else f"#{i}" for i, m in enumerate(models)]
    if not read_in:
        raise BadInput("no model to rank: name at least one")
    with opened_data(read_in[0], data, options) as opened:
        splits = split(
            opened.samples, fractions=options.fractions, seed=options.seed, groups=opened.groups
        )
        tasks = [task_of(model, opened, splits, options) for model in read_in]
        return run_rank(list(zip(names, tasks, strict=True)), profile_of(tasks[0], options))


def _require_alike(before: OnnxModel, after: OnnxModel, plan: Plan | None) -> None:
    """Raise Unlike unless inputs and outputs are the same, but for what a plan declares gone."""
    gone = CacheRecord() if plan is None else plan.cache
    for kind, missing in (("inputs", gone.inputs), ("outputs", gone.outputs)):
        old, new = (getattr(model.graph, kind) for model in (before, after))
        if tuple(name for name in old if name not in missing) != new:
            other = sorted(set(old).symmetric_difference(new) - set(missing))
            raise Unlike(
                "the two models have different inputs or outputs and cannot be compared: "
                f"{kind} {', '.join(other) or 'in another order'}; where caches were dropped, keep "
                "the plan beside the new model"
            )
