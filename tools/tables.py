"""What a person sees: tables of blocks, of before and after, of verdicts. 80 columns are enough."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..ir.blocks import Anatomy
from ..ir.spans import Refusal, Span
from ..passes.facts import Facts
from ..passes.layout import CACHES_MAY_GO
from ..passes.plan import CacheRecord, LatencyRecord
from ..passes.ranking import Candidate
from ..passes.score import Redundancy
from ..passes.verify import Verdict, shown
from .likeness_tables import show_similarity
from .results import Inspection, Result


def show_inspection(console: Console, found: Inspection) -> None:
    """Streams, their blocks, and how redundant each unit and block is."""
    for stream in found.anatomies:
        console.print(
            f"stream from {stream.chain.source} to {stream.chain.sink}: "
            f"{len(stream.blocks)} blocks, {len(stream.units)} units, "
            f"{len(stream.chain.cuts)} cuts",
            style="bold",
            markup=False,
        )
    table = _table("span", "blocks", "params")
    if found.survey is not None:
        for header in ("redundancy", "cosine", "affine R2"):
            table.add_column(header, justify="right")
        for redundancy in found.survey.spans:
            table.add_row(*_span_cells(found, redundancy))
        for span in found.spans:
            if span.strides:
                table.add_row(*_name_cells(found, span), "-", "-", "-")
    else:
        for span in found.spans:
            table.add_row(*_name_cells(found, span))
    console.print(table)
    if found.survey is not None:
        console.print(
            "redundancy: -E|y-x|^2, nearer 0 is more; affine R2: on held-out samples", style="dim"
        )
        for similarity in found.survey.similarities:
            show_similarity(console, similarity, found.survey.spans)
    if found.samples is not None:
        held, due = found.samples
        console.print(
            f"from statistics of {held:,} of {due:,} samples",
            style="dim" if held == due else "bold",
        )
    show_random(console, found.random)
    show_refusals(console, found.refusals, _block_names(found.anatomies))


def _block_names(streams: Sequence[Anatomy]) -> set[str]:
    return {block.name for stream in streams for block in stream.blocks}


def _name_cells(found: Inspection, span: Span) -> tuple[Text, str, str]:
    parameters = found.graph.parameters(span.removed)
    return Text(span.name), f"{span.blocks:.2f}", _count(parameters)


def _span_cells(found: Inspection, redundancy: Redundancy) -> Sequence[str | Text]:
    return (
        *_name_cells(found, redundancy.span),
        f"{redundancy.block_redundancy:.4g}",
        f"{redundancy.cosine:.3f}",
        f"{redundancy.affine_r2:.3f}",
    )


def show_result(console: Console, result: Result) -> None:
    """The face of `optimize`: what was replaced, before and after, and the verdict."""
    plan = result.plan
    table = _table("replaced", "by", "blocks", "predicted error")
    for decision in plan.decisions:
        table.add_row(
            Text(decision.name),
            decision.surrogate,
            f"{decision.blocks:.2f}",
            f"{decision.predicted_error:.4f}",
        )
    console.print(table)
    for decision in plan.decisions:
        if decision.warning:
            console.print(f"warning: {decision.name}: {decision.warning}", markup=False)
    console.print(_before_after(result))
    if plan.latency is not None:
        show_latency(console, plan.latency)
    if plan.verdict is not None:
        show_verdict(console, plan.verdict)
    show_random(console, plan.data.random)
    show_cache(console, plan.cache)
    show_refusals(console, plan.refusals, _block_names(result.optimized.layout.anatomies))


def _before_after(result: Result) -> Table:
    plan, before, after = result.plan, result.before, result.after
    table = _table("", "before", "after", "change")
    blocks = sum(len(stream.blocks) for stream in result.optimized.layout.anatomies)
    left = blocks - sum(decision.blocks for decision in plan.decisions)
    table.add_row("blocks", str(blocks), f"{left:.4g}", _change(blocks, left))
    for name, old, new in _weights(before, after):
        table.add_row(name, _count(old), _count(new), _change(old, new))
    if plan.verdict is not None:
        verdict = plan.verdict
        change = shown(verdict.metric, verdict.after - verdict.before)
        table.add_row(
            verdict.metric,
            _score(verdict.metric, verdict.before),
            _score(verdict.metric, verdict.after),
            change,
        )
    if plan.latency is not None:
        speed = plan.latency
        table.add_row(
            "latency",
            f"{speed.original_ms:.3g} ms",
            f"{speed.new_ms:.3g} ms",
            f"{speed.ratio:.2f}x",
        )
    return table


def _weights(before: Facts, after: Facts) -> list[tuple[str, int | None, int | None]]:
    return [
        ("nodes", before.nodes, after.nodes),
        ("parameters", before.parameters, after.parameters),
        ("bytes", before.size_bytes, after.size_bytes),
        ("FLOPs", before.flops, after.flops),
    ]


def show_ranking(console: Console, candidates: Sequence[Candidate]) -> None:
    """Candidates, those that no other beats in everything marked."""
    table = _table("model", "best", "quality", "alike", "MSRS", "blocks", "params", "ms")
    for c in candidates:
        table.add_row(
            Text(c.name),
            "*" if c.is_pareto else "",
            f"{c.quality:.4f}",
            f"{c.msrs_per_pair:.3f}",
            f"{c.msrs:.1f}",
            str(c.blocks),
            _count(c.parameters),
            f"{c.latency_ms:.3g}",
        )
    console.print(table)
    console.print(
        "*: no other is as good in quality, share of layers alike (MSRS per pair) and latency at "
        "once",
        style="dim",
    )


def show_latency(console: Console, latency: LatencyRecord) -> None:
    console.print(
        f"latency: {latency.ratio:.3f}x as fast ({latency.low:.3f} to {latency.high:.3f}, 10th to "
        f"90th percentile), {latency.profile}",
        markup=False,
    )


def show_verdict(console: Console, verdict: Verdict) -> None:
    """What was measured, the bound, and whether a promise was kept."""
    bound, metric = verdict.bound, verdict.metric
    word = "certified" if bound.certified else "estimated"
    console.print(
        f"{metric} on {verdict.samples} samples: {_score(metric, verdict.before)} -> "
        f"{_score(metric, verdict.after)}, drop {shown(metric, verdict.drop)} "
        f"({verdict.worse} worse, {verdict.better} better)",
        markup=False,
    )
    text = f"{word}: drop at most {shown(metric, bound.upper)} (95 %, {bound.method})"
    if verdict.promise is None:
        console.print(f"{text}; nothing was promised", markup=False)
        return
    kept = bound.upper <= verdict.promise
    console.print(
        f"{text}; promised {shown(metric, verdict.promise)}: {'kept' if kept else 'BROKEN'}",
        style="bold green" if kept else "bold red",
        markup=False,
    )
    if verdict.chance is not None:
        console.print(
            f"chance to certify, judged before on the other samples: {verdict.chance:.0%}",
            markup=False,
        )


def show_random(console: Console, random: bool) -> None:
    """The stamp of made-up data."""
    if random:
        console.print("RANDOM data: these figures say nothing of quality", style="bold red")


def show_cache(console: Console, cache: CacheRecord) -> None:
    """What went of a decoder's interface, and a warning."""
    if not cache.outputs:
        return
    kept = f", {len(cache.still_read)} more still read" if cache.still_read else ""
    console.print(
        f"caches dropped: {len(cache.inputs)} inputs{kept}, {len(cache.outputs)} outputs, named in "
        "the plan; less depth harms generative reasoning most, so judge what it writes, too",
        style="dim",
        highlight=False,
    )


def show_refusals(console: Console, refusals: Sequence[Refusal], blocks: Collection[str]) -> None:
    """Blocks that cannot be replaced, and why; stems, poolings and heads are only counted."""
    lines = [f"not replaceable: {r.name}: {r.reason}" for r in refusals if r.name in blocks]
    if any(refusal.output for refusal in refusals):
        lines.append(CACHES_MAY_GO)
    others = sum(refusal.name not in blocks for refusal in refusals)
    if others:
        lines.append(f"{others} units outside the blocks (stem, pooling, head) stay as they are")
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False)


def _score(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric in ("accuracy", "agreement") else f"{value:.4f}"


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, header in enumerate(headers):
        table.add_column(header, justify="left" if at == 0 else "right", overflow="fold")
    return table


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _change(old: float | None, new: float | None) -> str:
    return "" if not old or new is None else f"{100 * (new / old - 1):+.1f} %"
