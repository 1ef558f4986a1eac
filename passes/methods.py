"""Published methods as presets: which blocks they remove, and what they put in their place.

    drop        the blocks of least influence 1 - cos(x, y) go (ShortGPT, Men et al. 2024)
    rba         the blocks of highest redundancy, one map y ~ x T for each run of them, plain least
                squares without a bias on the original's activations (RBA, arXiv 2410.04941)
    replaceme   the run of blocks whose ends are most alike; y ~ r + (u W0 + b0) T, T folded into
                the linear operation that feeds the entry (ReplaceMe, Shopkhoev et al. 2025)

None repairs what follows. RBA itself picks spans by hand; here it takes them by its own measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from ..ir.blocks import Anatomy, Block
from ..ir.errors import BadInput, Unsupported
from ..ir.graph import Graph
from ..ir.spans import ObservedShapes, Span, prove
from .budget import Budget
from .fit import Healing, Recipe
from .forms import Forms
from .score import Redundancy, measure
from .surrogates import Form, Wish
from .trial import Trials

Method = Literal["blockfold", "drop", "rba", "replaceme"]
METHODS: tuple[Method, ...] = get_args(Method)

PLAIN = Healing(refit=None, bias=False, ridge=False, original=True)


@dataclass(frozen=True)
class Preset:
    """What a published method puts in the place of a span, and how it is solved."""

    form: Form
    healing: Healing


PRESETS: dict[Method, Preset] = {
    "drop": Preset("identity", PLAIN),
    "rba": Preset("affine", PLAIN),
    "replaceme": Preset("folded", replace(PLAIN, tied=True)),
}


class Published:
    """The recipes of published methods on one task; spans are measured once for all of them."""

    def __init__(self, trials: Trials) -> None:
        self._forms: Forms = trials.forms
        layout = trials.layout
        graph, observed = trials.task.plain.graph, layout.observed
        self._runs = [
            run
            for stream in layout.anatomies
            for run in _runs(graph, stream, observed, len(stream.blocks) // 2)
        ]
        self._measured: dict[Span, Redundancy] = {}
        self._trials = trials

    def recipes(self, method: Method, budget: Budget) -> list[Recipe]:
        """For every number of blocks up to half of them, or the one asked for.

        Raises BadInput where that many blocks cannot be removed so, Unsupported where none can.
        """
        blocks = sum(len(stream.blocks) for stream in self._trials.layout.anatomies)
        counts: Sequence[int] = range(1, max(1, blocks // 2) + 1)
        if budget.remove is not None:
            counts = [math.ceil(budget.remove - 1e-9)]  # they remove whole blocks
        found = [self.recipe(method, count) for count in counts]
        recipes = [recipe for recipe in found if recipe is not None]
        if not recipes and budget.remove is not None:
            raise BadInput(f"--method {method}: cannot remove {budget.remove:g} blocks here")
        if not recipes:
            raise Unsupported(f"--method {method}: its rule applies to no block of this model")
        return recipes

    def recipe(self, method: Method, count: int) -> Recipe | None:
        """What a method does to remove `count` blocks; None where its rule does not apply."""
        preset = PRESETS[method]
        spans = self._run(count) if method == "replaceme" else self._blocks(method, count)
        if spans is None:
            return None
        return Recipe(tuple(Wish(span, preset.form) for span in spans), preset.healing)

    def is_foldable(self, span: Span) -> bool:
        """Whether its entry is a sum that a linear operation feeds, with no norm in between."""
        stop = self._forms.stop(span)
        return stop is not None and stop.linear is not None and stop.value == span.entry

    def _run(self, count: int) -> list[Span] | None:
        """The run of so many blocks, foldable, whose ends are most alike."""
        runs = [span for blocks, span in self._runs if len(blocks) == count]
        runs = [span for span in runs if self.is_foldable(span)]
        if not runs:
            return None
        return [min(runs, key=lambda span: self._redundancy(span).block_influence)]

    def _blocks(self, method: Method, count: int) -> list[Span] | None:
        """The blocks that the method ranks first, those side by side as one span."""
        single = {blocks[0]: span for blocks, span in self._runs if len(blocks) == 1}

        def rank(block: Block) -> float:
            found = self._redundancy(single[block])
            return found.block_influence if method == "drop" else -found.block_redundancy

        chosen = set(sorted(single, key=rank)[:count])
        if len(chosen) < count:
            return None
        spans: list[Span] = []
        taken: set[Block] = set()
        for blocks, span in sorted(self._runs, key=lambda run: -len(run[0])):
            is_free = taken.isdisjoint(blocks) and not any(span.touches(s) for s in spans)
            if chosen.issuperset(blocks) and is_free:
                spans.append(span)
                taken.update(blocks)
        if taken != chosen:
            return None
        return sorted(spans, key=lambda span: (span.stream, span.start))

    def _redundancy(self, span: Span) -> Redundancy:
        if not self._measured:
            spans = list(dict.fromkeys(span for _, span in self._runs))
            found = measure(self._trials.task, spans, "survey of blocks")
            self._measured = {redundancy.span: redundancy for redundancy in found}
        return self._measured[span]


def _runs(
    graph: Graph, stream: Anatomy, observed: ObservedShapes, longest: int
) -> list[tuple[tuple[Block, ...], Span]]:
    """The provable runs of neighbouring blocks."""
    found = []
    for first in range(len(stream.blocks)):
        for count in range(1, max(1, longest) + 1):
            run = stream.blocks[first : first + count]
            if len(run) < count or any(a.stop != b.start for a, b in pairwise(run)):
                break
            proved = prove(graph, stream, run[0].start, run[-1].stop, observed)
            if isinstance(proved, Span) and not proved.strides:
                found.append((tuple(run), proved))
    return found
