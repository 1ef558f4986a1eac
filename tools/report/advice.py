"""Advice: what may be tried where a promise or a budget was not met."""

from __future__ import annotations

import math

from ...passes.optimize import Attempt
from ...passes.verify import unit
from .trials import nearest


def advice(attempt: Attempt) -> tuple[str, ...]:
    """One line for each way out, the gentlest first."""
    plan, budget = attempt.plan, attempt.plan.budget
    trials = nearest(attempt)
    if not trials:
        return ("No span is more than the map that would replace it: there is no depth to spare.",)
    found = []
    if plan.verdict is not None and not plan.verdict.kept:
        found.append(
            "Give fresh samples: those held back have been looked at, and a second run on them "
            f"promises nothing. More than {plan.data.samples} make the limit tighter."
        )
        found.append(f"Promise less: {_allowing(plan.verdict.bound.upper, plan.metric)} or more.")
        return tuple(found)
    if plan.latency is not None:
        return (f"Ask for less: measured, this plan is {plan.latency.ratio:.2f}x as fast.",)
    reaching = [trial for trial in trials if budget.reached(trial)]
    if budget.has_target and not reaching:
        if budget.speedup is not None:
            fastest = max(trial.speedup for trial in trials)
            found.append(f"Ask for less: the fastest plan is expected at {fastest:.2f}x.")
        if budget.remove is not None:
            most = max(trial.blocks for trial in trials)
            found.append(f"Ask for less: at most {most:.2f} blocks were replaced in one plan.")
        if budget.max_size_bytes is not None:
            least = min(trial.size_bytes for trial in trials)
            found.append(f"Ask for less: the smallest plan makes a file of {least:,} bytes.")
        return tuple(found)
    if budget.max_drop is not None:
        safest = min(reaching or trials, key=lambda trial: trial.forecast.upper)
        found.append(
            f"Allow more: {_allowing(safest.forecast.upper, plan.metric)} is what the safest plan "
            "is expected to be held to."
        )
        found.append(
            f"Give more samples: with {plan.data.select} to choose on and {plan.data.certify} to "
            "certify on, a plan must be far better than the promise to be sure of it."
        )
    return tuple(found)


def _allowing(drop: float, metric: str) -> str:
    """A drop rounded up, as --max-drop takes it."""
    if unit(metric) == "points":
        return f"--max-drop {math.ceil(1000 * drop) / 10:g}%"
    digits = 10 ** (1 - math.floor(math.log10(drop))) if drop > 0 else 1
    return f"--max-drop {math.ceil(drop * digits) / digits:g}"
