"""Which rule shortlists spans best?

The search, with spans shortlisted by each metric (--rank-by) or by the damage foretold of them,
looks for the least damage at a third of the FLOPs saved. Told is the mean divergence of the
classes' probabilities from the original's, on samples that nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...calibration.runtime import Runner
from ...passes.budget import Budget
from ...passes.costs import CostModel
from ...passes.layout import lay_out
from ...passes.pipeline import build
from ...passes.rating import METRICS, Metric
from ...passes.search import Search
from ...passes.task import Reference
from ...passes.trial import Trials
from .digits import flop_costs, opened, trained
from .tables import each, spread, table

SPEEDUP = 1.5
RULES: tuple[Metric | None, ...] = (None, *METRICS)


def report(seeds: Sequence[int]) -> Iterator[str]:
    found = [_damages(seed) for seed in seeds]
    rows = []
    for rule in RULES:
        damages = [one[rule] for one in found]
        ratios = [one[rule] / one[None] for one in found]
        rows.append((rule or "foretold damage", spread(damages, 4), each(ratios)))
    yield from table(("shortlisted by", "damage, nats", "over foretold, seed by seed"), rows)


def _damages(seed: int) -> dict[Metric | None, float]:
    found: dict[Metric | None, float] = {}
    with opened(trained(seed), seed) as task:
        layout = lay_out(task)
        costs = CostModel(layout.anatomies, flop_costs(task, layout))
        budget = Budget(speedup=SPEEDUP)
        with (
            Trials(task, layout, costs, None) as trials,
            Reference(task, task.splits.certify, "original on certify") as reference,
        ):
            for rule in RULES:
                tried = Search(trials, budget, margin=0.0, rank_by=rule).run()
                (made,) = trials.solved_on_both(
                    [(budget.ranked(tried) or budget.nearest(tried))[0]]
                )
                runner = Runner(build(task.plain, made), task.runtime)
                batches = task.data.batches(task.splits.certify, task.batch)
                outputs = (runner(batch.feeds)[task.output] for batch in batches)
                _, found[rule] = reference.judge(outputs)
    return found
