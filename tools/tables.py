"""What a person sees: tables of blocks, of before and after, of verdicts. 80 columns are enough."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from rich.console import Console
from rich.text import Text

from ..ir.blocks import Anatomy
from ..ir.spans import Refusal, Span
from ..passes.layout import CACHES_MAY_GO
from ..passes.plan import CacheRecord, LatencyRecord
from ..passes.ranking import Candidate
from ..passes.score import Redundancy
from ..passes.verify import Verdict
from .likeness_tables import borderless, show_similarity
from .results import Inspection, Result
from .wording import bounded, chance, changes_of, counted, judged, speed


def show_inspection(console: Console, found: Inspection, verbose: bool = False) -> None:
    """Streams, their blocks, and how redundant each unit and block is."""
    for stream in found.anatomies:
        console.print(
            f"stream from {stream.chain.source} to {stream.chain.sink}: "
            f"{len(stream.blocks)} blocks, {len(stream.units)} units, "
            f"{len(stream.chain.cuts)} cuts",
            style="bold",
            markup=False,
        )
    table = borderless("span", "blocks", "params")
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
    show_refusals(console, found.refusals, _block_names(found.anatomies), verbose)


def _block_names(streams: Sequence[Anatomy]) -> set[str]:
    return {block.name for stream in streams for block in stream.blocks}


def _name_cells(found: Inspection, span: Span) -> tuple[Text, str, str]:
    parameters = found.graph.parameters(span.removed)
    return Text(span.name), f"{span.blocks:.2f}", counted(parameters)


def _span_cells(found: Inspection, redundancy: Redundancy) -> Sequence[str | Text]:
    return (
        *_name_cells(found, redundancy.span),
        f"{redundancy.block_redundancy:.4g}",
        f"{redundancy.cosine:.3f}",
        f"{redundancy.affine_r2:.3f}",
    )


def show_result(console: Console, result: Result, verbose: bool = False) -> None:
    """The face of `optimize`: what was replaced, before and after, and the verdict."""
    plan = result.plan
    table = borderless("replaced", "by", "blocks", "predicted error")
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
    changes = borderless("", "before", "after", "change")
    for change in changes_of(result.optimized, result.before, result.after):
        changes.add_row(*change)
    console.print(changes)
    if plan.latency is not None:
        show_latency(console, plan.latency)
    if plan.verdict is not None:
        show_verdict(console, plan.verdict)
    show_random(console, plan.data.random)
    show_cache(console, plan.cache)
    names = _block_names(result.optimized.layout.anatomies)
    show_refusals(console, plan.refusals, names, verbose)


def show_ranking(console: Console, candidates: Sequence[Candidate]) -> None:
    """Candidates, those that no other beats in everything marked."""
    table = borderless("model", "best", "quality", "alike", "MSRS", "blocks", "params", "ms")
    for c in candidates:
        table.add_row(
            Text(c.name),
            "*" if c.is_pareto else "",
            f"{c.quality:.4f}",
            f"{c.msrs_per_pair:.3f}",
            f"{c.msrs:.1f}",
            str(c.blocks),
            counted(c.parameters),
            f"{c.latency_ms:.3g}",
        )
    console.print(table)
    console.print(
        "*: no other is as good in quality, share of layers alike (MSRS per pair) and latency at "
        "once",
        style="dim",
    )


def show_latency(console: Console, latency: LatencyRecord) -> None:
    console.print(speed(latency), markup=False)


def show_verdict(console: Console, verdict: Verdict) -> None:
    """What was measured, the bound, and whether a promise was kept."""
    console.print(judged(verdict), markup=False)
    style = None
    if verdict.promise is not None:
        style = "bold green" if verdict.kept else "bold red"
    console.print(bounded(verdict), style=style, markup=False)
    if verdict.chance is not None and verdict.promise is not None:
        console.print(chance(verdict.chance), markup=False)


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


def show_refusals(
    console: Console, refusals: Sequence[Refusal], blocks: Collection[str], verbose: bool
) -> None:
    """Blocks that cannot be replaced, counted by reason; with `verbose` each, units too."""

    def say(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    inside = [refusal for refusal in refusals if refusal.name in blocks]
    outside = len(refusals) - len(inside)
    if verbose:
        for refusal in refusals:
            say(f"not replaceable: {refusal.name}: {refusal.reason}; {refusal.node}")
    else:
        for kind, count in Counter(_kind(refusal.reason) for refusal in inside).most_common():
            say(f"not replaceable: {count} blocks: {kind} (-v tells which)")
    if any(refusal.output for refusal in refusals):
        say(CACHES_MAY_GO)
    if outside:
        say(f"{outside} units outside the blocks (stem, pooling, head) stay as they are")


def _kind(reason: str) -> str:
    """A reason without what differs from place to place: names and shapes."""
    return re.sub(r"'[^']*'", "...", reason).split(":")[0]
