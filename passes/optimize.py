"""The main job, start to end: lay out, search, solve, rewrite, freeze, certify once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from ..calibration.latency import Profile, Timing, time_models
from ..ir.errors import BadInput, NotMet
from ..ir.onnx_file import OnnxModel
from ..ir.spans import Refusal
from .budget import Budget
from .costs import CostModel, Costs, measure_costs
from .exits import exit_errors
from .layout import Layout, lay_out, touchable
from .methods import Method, Published
from .pipeline import ALL_PASSES, Switches, build, caches_of, rewrite
from .plan import (
    CacheRecord,
    DataRecord,
    LatencyRecord,
    ModelRecord,
    Plan,
    TrialRecord,
    decision_of,
    tensor_bytes,
    tensors_of,
)
from .probe import Option
from .rating import Metric
from .recipe import Healing
from .replacement import Replacement
from .search import Search
from .task import Task, thinned
from .trial import Trial, Trials, tempered
from .verify import Verdict, forecast, samples_needed, shown, verify

PLAN_KEY = "blockfold.plan_sha256"
"""Under which a model names, in its metadata, the plan that it was made by."""

Freeze = Callable[[OnnxModel], OnnxModel]
"""Turns the rewritten model into the one frozen file that is certified."""


ERRORS_ON = 256
"""Samples held back on which the errors at the exits are measured, at most."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """What was tried: the layout, single surrogates, sets of them, and which of these was chosen.

    `plan` has no decisions where nothing was chosen.
    """

    layout: Layout
    options: tuple[Option, ...]
    trials: tuple[Trial, ...]
    chosen: Trial | None
    plan: Plan


@dataclass(frozen=True, eq=False)
class Optimized(Attempt):
    """What came out: the frozen model, its plan's tensors, the verdict, and the changes made."""

    model: OnnxModel
    tensors: bytes
    verdict: Verdict
    changes: tuple[str, ...]


class Rejected(NotMet):
    """NotMet, with what was tried."""

    def __init__(self, why: str, attempt: Attempt) -> None:
        super().__init__(why)
        self.attempt = attempt


def freeze_in_memory(model: OnnxModel) -> OnnxModel:
    """The model as the bytes it would have in a file."""
    return replace(model, content=model.serialized())


def optimize(
    task: Task,
    budget: Budget,
    profile: Profile,
    *,
    costs: Costs | None = None,
    method: Method = "blockfold",
    rank_by: Metric | None = None,
    freeze: Freeze = freeze_in_memory,
    switches: Switches = ALL_PASSES,
) -> Optimized:
    """Replace what the budget allows and certify the result on the split held back for it.

    Raises Rejected where the budget or the promise cannot be met, BadInput where there are too few
    samples to certify anything, Unsupported where the model offers nothing to replace.
    """
    require_enough_samples(task, budget.max_drop)
    layout = touchable(task, lay_out(task))
    costs = costs or measure_costs(task, layout, profile)
    model_of_costs = CostModel(layout.anatomies, costs)
    options: tuple[Option, ...] = ()
    with Trials(task, layout, model_of_costs, budget.max_drop) as trials:
        if method == "blockfold":
            search = Search(trials, budget, rank_by=rank_by)
            search.run()
            options = search.options
        else:
            trials.fit(Published(trials).recipes(method, budget))
        tried = tuple(tempered(task, trials.done, budget.max_drop))
        confirmed = budget.confirmed(tried, lambda scores: forecast(task, scores, budget.max_drop))
        chosen = None if confirmed is None else confirmed[0]
        (replacements,) = trials.solved_on_both([chosen]) if chosen else ((),)
    tensors = tensor_bytes(tensors_of(replacements))
    healing = Healing() if chosen is None else chosen.recipe.healing
    refusals = (*layout.refusals, *trials.refused)
    decided = make_plan(
        task, budget, switches, replacements, healing, refusals, tensors, method, rank_by
    )
    plan = decided.model_copy(update={"costs": costs, "trials": tuple(map(_trial_record, tried))})
    attempt = Attempt(layout, options, tried, chosen, plan)
    if confirmed is None:
        raise Rejected(_why_nothing(task, tried, trials.refused, budget), attempt)
    rewritten = rewrite(task.model, replacements, provenance(plan), switches)
    model = freeze(rewritten.model)
    judged = verify(task, model, task.splits.certify, budget.max_drop)
    verdict = replace(judged, chance=confirmed[1].chance)
    made = [r for r in replacements if r.form != "refit"]
    held_back = thinned(task.splits.certify, ERRORS_ON)
    measured = {
        "latency": measure_latency(task, model, profile),
        "verdict": verdict,
        "exit_errors": exit_errors(task, build(task.plain, replacements), made, held_back),
    }
    plan = plan.model_copy(update=measured)
    why_not = _why_not(plan, verdict, budget, model.size_bytes)
    if why_not is not None:
        raise Rejected(why_not, replace(attempt, plan=plan))
    return Optimized(
        layout, options, tried, chosen, plan, model, tensors, verdict, rewritten.changes
    )


def require_enough_samples(task: Task, promise: float | None) -> None:
    """BadInput, before any work, where even a loss-free result could not keep the promise."""
    if promise is None:
        return
    held, needed = task.units(task.splits.certify), samples_needed(task, promise)
    if held < needed:
        share = task.splits.fractions[2]
        raise BadInput(
            f"--max-drop {promise:.3g} needs at least {needed} samples to certify, and the split "
            f"holds {held} back: give at least {-(-needed // share):.0f} samples, or allow more"
        )


def make_plan(
    task: Task,
    budget: Budget,
    switches: Switches,
    replacements: Sequence[Replacement],
    healing: Healing,
    refusals: Sequence[Refusal],
    tensors: bytes,
    method: str,
    rank_by: Metric | None,
) -> Plan:
    """The plan before anything was measured on it, hashed."""
    splits, data = task.splits, task.data
    plan = Plan(
        blockfold=version("blockfold"),
        versions={name: version(name) for name in ("numpy", "onnx", "scipy")}
        | {"onnxruntime": _onnxruntime_version()},
        provider=task.runtime.provider,
        threads=task.runtime.threads,
        batch=task.batch,
        metric=task.metric,
        output=task.output,
        budget=budget,
        skipped=tuple(sorted(switches.off)),
        model=ModelRecord(
            sha256=task.model.sha256,
            size_bytes=task.model.size_bytes,
            nodes=len(task.model.graph.nodes),
            parameters=task.model.graph.parameters_stored,
        ),
        data=DataRecord(
            sha256=data.digest,
            samples=data.samples,
            fit=len(splits.fit),
            select=len(splits.select),
            certify=len(splits.certify),
            seed=splits.seed,
            fractions=splits.fractions,
            mask=task.mask,
            random=data.random,
        ),
        decisions=tuple(decision_of(r) for r in replacements if r.form != "refit"),
        refits=tuple(decision_of(r) for r in replacements if r.form == "refit"),
        method=method,
        rank_by=rank_by,
        healing=healing,
        cache=_cache_record(task, replacements, switches),
        refusals=tuple(refusals),
        tensors_sha256=hashlib.sha256(tensors).hexdigest(),
    )
    return plan.model_copy(update={"sha256": plan.digest()})


def _cache_record(
    task: Task, replacements: Sequence[Replacement], switches: Switches
) -> CacheRecord:
    """The caches that the replacements take away, found by taking them away."""
    gone = [name for replacement in replacements for name in replacement.span.dropped]
    if not gone:
        return CacheRecord(allowed=task.drop_cache)
    left = build(task.plain, replacements, switches).graph.inputs
    inputs, pasts = task.plain.graph.inputs, caches_of(task.plain, gone)
    return CacheRecord(
        allowed=task.drop_cache,
        inputs=tuple(name for name in inputs if name not in left),
        outputs=tuple(name for name in task.plain.graph.outputs if name in gone),
        still_read=tuple(name for name in inputs if name in pasts and name in left),
    )


def _onnxruntime_version() -> str:
    from ..calibration.runtime import load

    return str(load().__version__)


def provenance(plan: Plan) -> Mapping[str, str]:
    """What the model itself records of where it comes from."""
    return {
        "blockfold.version": plan.blockfold,
        "blockfold.parent_sha256": plan.model.sha256,
        PLAN_KEY: plan.sha256,
    }


def measure_latency(task: Task, model: OnnxModel, profile: Profile) -> LatencyRecord:
    """Both models side by side at the profile."""
    with task.stage("latency", 1) as advance:
        original, new = time_models([task.model, model], task.runtime, profile)
        advance(1)
    return latency_record(original, new, profile)


def latency_record(original: Timing, new: Timing, profile: Profile) -> LatencyRecord:
    ratio, low, high = new.ratio_to(original)
    return LatencyRecord(
        profile=str(profile),
        ratio=ratio,
        low=low,
        high=high,
        original_ms=original.median_ms,
        new_ms=new.median_ms,
    )


def _trial_record(trial: Trial) -> TrialRecord:
    return TrialRecord(
        replaced=tuple(f"{r.span.name}: {r.surrogate}" for r in trial.replacements),
        blocks=trial.blocks,
        drop=trial.scores.drop,
        expected_bound=trial.forecast.upper,
        chance=trial.forecast.chance,
        expected_speedup=trial.speedup,
    )


def why_not_kept(verdict: Verdict) -> str:
    """One line for a promise that was not kept."""
    chance = verdict.chance
    odds = "" if chance is None else f" (its chance was judged {chance:.0%} before)"
    drop, upper, allowed = (
        shown(verdict.metric, x) for x in (verdict.drop, verdict.bound.upper, verdict.promise or 0)
    )
    return (
        f"not certified: on {verdict.samples} samples held back the drop of {verdict.metric} is "
        f"{drop}, at most {upper} with 95 % confidence, more than the {allowed} allowed{odds}; "
        "give more samples or allow more"
    )


def _why_not(plan: Plan, verdict: Verdict, budget: Budget, size_bytes: int) -> str | None:
    """One line for a frozen model that must not be written; None where all is well."""
    if not verdict.kept:
        return why_not_kept(verdict)
    gained = size_bytes < plan.model.size_bytes or (plan.latency and plan.latency.ratio > 1.0)
    if not gained and not plan.skipped:
        return "the best plan makes the model neither faster nor smaller; it stays as it is"
    if budget.speedup is not None and plan.latency and plan.latency.ratio < budget.speedup:
        return (
            f"--speedup {budget.speedup:g} not reached: the best plan measured "
            f"{plan.latency.ratio:.3f}x ({plan.latency.low:.3f} to {plan.latency.high:.3f})"
        )
    return None


LISTED = 3
"""How many replacements of a plan are named in a line."""


def _replaced(trial: Trial) -> str:
    named = [f"{r.span.name} ({r.surrogate})" for r in trial.replacements if r.surrogate != "refit"]
    more = len(named) - LISTED
    return ", ".join(named[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _why_nothing(
    task: Task, trials: Sequence[Trial], refused: Sequence[Refusal], budget: Budget
) -> str:
    """One line: what stands in the way, and the nearest plans."""
    if not trials and refused:
        return f"cannot meet {budget}: {refused[-1].name} cannot be replaced: {refused[-1].reason}"
    if not trials:
        return f"cannot meet {budget}: no span is more than the map that would replace it"
    samples = len(task.splits.select)
    nearest = budget.nearest(trials)[:3]
    listed = "; ".join(
        f"{_replaced(t)}: drop "
        f"{shown(task.metric, t.scores.drop)}, expected bound "
        f"{shown(task.metric, t.forecast.upper)}, chance {t.forecast.chance:.0%}, "
        f"{t.speedup:.2f}x"
        for t in nearest
    )
    if budget.has_target and not any(budget.reached(trial) for trial in trials):
        why = "no plan that was tried reaches it"
    else:
        why = "damage: every replacement costs more than that or is too uncertain"
    return f"cannot meet {budget} ({why}, judged on {samples} samples). Nearest: {listed}"
