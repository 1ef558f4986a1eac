"""What an optimization itself costs, and how near its result comes to having nothing in the place.

    python -m blockfold.tools.benchmarks.effort model.onnx samples.npz --speedup 1.3

Prints the seconds of every stage, also in plain passes (the model alone, once over all the data),
the peak of memory beside that of a plain pass, and the latencies of the original, of what came out,
and of the oracle: the same spans replaced by nothing at all, no surrogate and no repair.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
from safetensors.numpy import load

from ...calibration.latency import take_turns
from ...calibration.runtime import Runner
from ...ir.errors import NotMet
from ...passes.pipeline import build
from ...passes.plan import replacements_of
from ...passes.replacement import Replacement
from .. import api, opening, options
from .meters import Clock, peak_bytes, plain_pass

ROUNDS = 40
MEGA = 2**20


def without(replacements: Sequence[Replacement]) -> list[Replacement]:
    """The same spans with nothing in their place, nothing repaired."""
    spans = [r for r in replacements if r.form != "refit"]
    return [replace(r, solution=None, form="identity", linear=None, mask=None) for r in spans]


@click.command()
@click.argument("model")
@click.argument("data")
@click.option("--metric", help="As of optimize.")
@click.option("--max-drop", callback=options.share, help="As of optimize.")
@click.option("--speedup", type=float, help="As of optimize.")
@click.option("--remove", type=float, help="As of optimize.")
@click.option("--seed", default=0, help="As of optimize.")
def main(model: str, data: str, metric: str | None, seed: int, **budget: Any) -> None:
    """Time one optimization, stage by stage, and its result against the oracle."""
    clock = Clock()
    settings = opening.Settings(metric=metric, seed=seed, stage=clock)
    parent = opening.read_model(model)
    with opening.opened_task(parent, data, settings) as task:
        one = min(plain_pass(task) for _ in range(2))
        plain_bytes = peak_bytes()
        begin = time.perf_counter()
        try:
            result = api.optimize(parent, data, metric=metric, seed=seed, stage=clock, **budget)
        except NotMet as error:
            result = None
            click.echo(f"not met: {error}")
        total = time.perf_counter() - begin
        click.echo(f"plain pass: {one:.2f} s over {task.data.samples} samples\n")
        click.echo("| stage | seconds | plain passes |\n| --- | --- | --- |")
        stages = sorted(clock.seconds.items(), key=lambda item: -item[1])
        rest = total - sum(clock.seconds.values())
        for name, seconds in [*stages, ("all else", rest), ("whole", total)]:
            click.echo(f"| {name} | {seconds:.1f} | {seconds / one:.1f} |")
        more = peak_bytes() / plain_bytes
        click.echo(f"\npeak memory: {peak_bytes() / MEGA:.0f} MiB, {more:.1f} of a plain pass")
        if result is None:
            return
        tensors = load(result.optimized.tensors)
        replacements = replacements_of(task.plain, result.plan, tensors)
        oracle = build(task.plain, without(replacements))
        models = [task.model, result.optimized.model, oracle]
        runners = [Runner(m, task.runtime) for m in models]
        original, new, bare = take_turns(runners, opening.profile_of(task, settings), rounds=ROUNDS)
        reached, most = new.ratio_to(original), bare.ratio_to(original)
        click.echo(
            f"latency: {reached[0]:.3f}x ({reached[1]:.3f} to {reached[2]:.3f}), oracle "
            f"{most[0]:.3f}x, share {reached[0] / most[0]:.1%}"
        )


if __name__ == "__main__":
    main()
