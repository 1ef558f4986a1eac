"""Wording: what is said of a result, in the terminal and in the report alike."""

from __future__ import annotations

from collections.abc import Iterator

from ..passes.facts import Facts
from ..passes.optimize import Attempt
from ..passes.plan import LatencyRecord
from ..passes.verify import Verdict, shown

Change = tuple[str, str, str, str]
"""What changed, before, after, and by how much."""


def changes_of(attempt: Attempt, before: Facts, after: Facts | None) -> Iterator[Change]:
    """Rows of before and after; weights only where there is an after."""
    plan = attempt.plan
    blocks = sum(len(stream.blocks) for stream in attempt.layout.anatomies)
    left = blocks - sum(decision.blocks for decision in plan.decisions)
    yield "blocks", str(blocks), f"{left:.4g}", relative(blocks, left)
    if after is not None:
        for name, old, new in (
            ("nodes", before.nodes, after.nodes),
            ("parameters", before.parameters, after.parameters),
            ("bytes", before.size_bytes, after.size_bytes),
            ("FLOPs", before.flops, after.flops),
        ):
            yield name, counted(old), counted(new), relative(old, new)
    if plan.verdict is not None:
        verdict, metric = plan.verdict, plan.verdict.metric
        old_score, new_score = (score(metric, x) for x in (verdict.before, verdict.after))
        yield metric, old_score, new_score, shown(metric, verdict.after - verdict.before)
    if plan.latency is not None:
        timed = plan.latency
        old_ms, new_ms = (f"{ms:.3g} ms" for ms in (timed.original_ms, timed.new_ms))
        yield "latency", old_ms, new_ms, f"{timed.ratio:.2f}x"


def judged(verdict: Verdict) -> str:
    """What was measured."""
    metric = verdict.metric
    return (
        f"{metric} on {verdict.samples} samples: {score(metric, verdict.before)} -> "
        f"{score(metric, verdict.after)}, drop {shown(metric, verdict.drop)} "
        f"({verdict.worse} worse, {verdict.better} better)"
    )


def bounded(verdict: Verdict) -> str:
    """The bound, and whether a promise was kept."""
    bound, metric = verdict.bound, verdict.metric
    word = "certified" if bound.certified else "estimated"
    text = f"{word}: drop at most {shown(metric, bound.upper)} (95 %, {bound.method})"
    if verdict.promise is None:
        return f"{text}; nothing was promised"
    kept = "kept" if verdict.kept else "BROKEN"
    return f"{text}; promised {shown(metric, verdict.promise)}: {kept}"


def chance(share: float) -> str:
    return f"chance to certify, judged before on the other samples: {share:.0%}"


def speed(latency: LatencyRecord) -> str:
    return (
        f"latency: {latency.ratio:.3f}x as fast ({latency.low:.3f} to {latency.high:.3f}, 10th to "
        f"90th percentile), {latency.profile}"
    )


def score(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric in ("accuracy", "agreement") else f"{value:.4f}"


def counted(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def relative(old: float | None, new: float | None) -> str:
    return "" if not old or new is None else f"{100 * (new / old - 1):+.1f} %"
