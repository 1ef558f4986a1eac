"""Published methods as presets: which blocks they remove, and what they put in their place.

    drop        the blocks of least influence 1 - cos(x, y) go (ShortGPT, Men et al. 2024)
    redtest     all but the blocks of lowest CKA of input and output go (RedTest, arXiv 2411.10507)
    modularity  blocks that add less than 0.03 to the modularity of the graph of nearest samples go,
                those that add least first (arXiv 2111.12485)
    lacoot      the blocks that move the distribution of their input least go, by the max-sliced
                Wasserstein distance (LaCoOT, arXiv 2406.08933)
    rba         the blocks of highest redundancy, one map y ~ x T for each run of them, plain least
                squares without a bias on the original's activations (RBA, arXiv 2410.04941)
    replaceme   the run of blocks whose ends are most alike; y ~ r + (u W0 + b0) T, T folded into
                the linear operation that feeds the entry (ReplaceMe, Shopkhoev et al. 2025)

The first four put nothing in the place of a block. None repairs what follows. RBA itself picks
spans by hand; here it takes them by its own measure. Blocks that change width or size, as the first
of a stage, are needed whatever their rating.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from ..calibration.metrics.cka import redtest_keep
from ..calibration.metrics.modularity import LEAST_GAIN
from ..calibration.metrics.sliced_wasserstein import lacoot_order
from ..ir.blocks import Anatomy, Block
from ..ir.channels import ObservedShapes
from ..ir.errors import BadInput, Unsupported
from ..ir.graph import Graph
from ..ir.spans import Span, prove
from .budget import Budget
from .forms import Forms
from .rating import UNTOLD, Metric, rating
from .recipe import Healing, Recipe
from .score import Redundancy, measure
from .surrogates import Form, Wish
from .trial import Trials

Method = Literal["blockfold", "drop", "redtest", "modularity", "lacoot", "rba", "replaceme"]
METHODS: tuple[Method, ...] = get_args(Method)

PLAIN = Healing(refit=None, bias=False, ridge=False, original=True)

Choice = Callable[[Sequence[float], int], Sequence[int]]
"""Of the ratings of all blocks and how many are to go, those that go: fewer where no more may."""


def lowest(ratings: Sequence[float], count: int) -> Sequence[int]:
    """The lowest ratings, the earlier of equal blocks first."""
    return lacoot_order(ratings)[:count]


def redtest(ratings: Sequence[float], count: int) -> Sequence[int]:
    """All but the blocks of lowest CKA, of ratings 1 - CKA."""
    total = len(ratings)
    (kept,) = redtest_keep([1.0 - value for value in ratings], [total], max(0, total - count))
    return [block for block in range(total) if block not in kept]


def plateau(ratings: Sequence[float], count: int) -> Sequence[int]:
    """The lowest gains of modularity that are no gains worth a block."""
    return [block for block in lowest(ratings, count) if ratings[block] < LEAST_GAIN]


@dataclass(frozen=True)
class Preset:
    """What a published method puts in the place of a span, how it is solved, and how it chooses.

    `is_run`: what goes is one run of blocks, rated as a whole.
    """

    form: Form
    healing: Healing
    metric: Metric
    choose: Choice = lowest
    is_run: bool = False


PRESETS: dict[Method, Preset] = {
    "drop": Preset("identity", PLAIN, "block-influence"),
    "redtest": Preset("identity", PLAIN, "cka", redtest),
    "modularity": Preset("identity", PLAIN, "modularity", plateau),
    "lacoot": Preset("identity", PLAIN, "sliced-w2"),
    "rba": Preset("affine", PLAIN, "block-redundancy"),
    "replaceme": Preset("folded", replace(PLAIN, tied=True), "block-influence", is_run=True),
}


class Published:
    """The recipes of published methods on one task; spans are measured once for all of them."""

    def __init__(self, trials: Trials) -> None:
        self._forms: Forms = trials.forms
        layout = trials.layout
        task = trials.task
        given = task.plain.graph, layout.observed, task.droppable
        self._runs = [
            run
            for stream in layout.anatomies
            for run in _runs(stream, len(stream.blocks) // 2, *given)
            if task.depends_on(run[1].exit)
        ]
        self._measured: dict[Span, Redundancy] = {}
        self._trials = trials

    def recipes(self, method: Method, budget: Budget) -> list[Recipe]:
        """For every number of blocks up to half of them, or the one asked for.

        Raises BadInput where that many blocks cannot be removed so, or the data does not tell what
        the method goes by, Unsupported where none can.
        """
        blocks = sum(len(stream.blocks) for stream in self._trials.layout.anatomies)
        counts: Sequence[int] = range(1, max(1, blocks // 2) + 1)
        if budget.remove is not None:
            counts = [math.ceil(budget.remove - 1e-9)]  # they remove whole blocks
        found = [self.recipe(method, count) for count in counts]
        recipes = [recipe for recipe in found if recipe is not None]
        if not recipes and self._is_unknown(PRESETS[method]):
            raise BadInput(
                f"--method {method}: this data tells the metric {PRESETS[method].metric} of no "
                f"block: it takes {UNTOLD}"
            )
        if not recipes and budget.remove is not None:
            raise BadInput(f"--method {method}: cannot remove {budget.remove:g} blocks here")
        if not recipes:
            raise Unsupported(f"--method {method}: its rule applies to no block of this model")
        return recipes

    def recipe(self, method: Method, count: int) -> Recipe | None:
        """What a method does to remove `count` blocks; None where its rule does not apply."""
        preset = PRESETS[method]
        spans = self._run(preset, count) if preset.is_run else self._blocks(preset, count)
        if spans is None:
            return None
        return Recipe(tuple(Wish(span, preset.form) for span in spans), preset.healing)

    def is_foldable(self, span: Span) -> bool:
        """Whether its entry is a sum that a linear operation feeds, with no norm in between."""
        stop = self._forms.stop(span)
        return stop is not None and stop.linear is not None and stop.value == span.entry

    def _run(self, preset: Preset, count: int) -> list[Span] | None:
        """The run of so many blocks, foldable, that is rated lowest."""
        runs = [span for blocks, span in self._runs if len(blocks) == count]
        rated = {span: self._rating(preset, span) for span in runs if self.is_foldable(span)}
        known = {span: value for span, value in rated.items() if value is not None}
        return [min(known, key=known.__getitem__)] if known else None

    def _blocks(self, preset: Preset, count: int) -> list[Span] | None:
        """The blocks that the method chooses, those side by side as one span."""
        single = {blocks[0]: span for blocks, span in self._runs if len(blocks) == 1}
        rated = {block: self._rating(preset, span) for block, span in single.items()}
        known = {block: value for block, value in rated.items() if value is not None}
        blocks = list(known)
        chosen = {blocks[at] for at in preset.choose(list(known.values()), count)}
        if len(chosen) < count:
            return None
        spans: list[Span] = []
        taken: set[Block] = set()
        for run, span in sorted(self._runs, key=lambda run: -len(run[0])):
            is_free = taken.isdisjoint(run) and not any(span.touches(s) for s in spans)
            if chosen.issuperset(run) and is_free:
                spans.append(span)
                taken.update(run)
        if taken != chosen:
            return None
        return sorted(spans, key=lambda span: (span.stream, span.start))

    def _is_unknown(self, preset: Preset) -> bool:
        spans = [span for _, span in self._runs]
        return bool(spans) and all(self._rating(preset, span) is None for span in spans)

    def _rating(self, preset: Preset, span: Span) -> float | None:
        if not self._measured:
            spans = list(dict.fromkeys(span for _, span in self._runs))
            trials = self._trials
            found = measure(trials.task, trials.layout, spans, "survey of blocks")
            self._measured = {redundancy.span: redundancy for redundancy in found}
        return rating(preset.metric, self._measured[span])


def _runs(
    stream: Anatomy,
    longest: int,
    graph: Graph,
    observed: ObservedShapes,
    droppable: frozenset[str],
) -> list[tuple[tuple[Block, ...], Span]]:
    """The provable runs of neighbouring blocks."""
    found = []
    for first in range(len(stream.blocks)):
        for count in range(1, max(1, longest) + 1):
            run = stream.blocks[first : first + count]
            if len(run) < count or any(a.stop != b.start for a, b in pairwise(run)):
                break
            proved = prove(graph, stream, run[0].start, run[-1].stop, observed, droppable)
            if isinstance(proved, Span) and not proved.strides:
                found.append((tuple(run), proved))
    return found
