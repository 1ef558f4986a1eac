"""Evidence: all that a survey takes from data, as a monoid over samples.

It is gathered on any part of the samples, by one process or many, merged, kept in a file, and read
out into a Survey without the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from ..calibration.splits import Fractions, Splits
from ..calibration.spread import Processes
from ..calibration.sweep import Pair, Statistics
from ..ir.channels import ObservedShapes
from ..ir.errors import BadInput
from ..ir.graph import Graph
from ..ir.spans import Span
from .layout import Layout
from .similarity import MOST_SAMPLES, Features, Layers, joined
from .sweep import ChooseSweep, Sweep, compared
from .task import Samples, Task


@dataclass(frozen=True, eq=False)
class Source:
    """What evidence holds of one data set: which of its samples, ascending, and their features.

    `due`: the samples of fit and select together, once they are all in. `seed` and `fractions` of
    the split.
    """

    fit: Samples
    select: Samples
    due: int
    seed: int
    fractions: Fractions
    features: Features

    @property
    def samples(self) -> Samples:
        return np.sort(np.concatenate([self.fit, self.select]))

    def merged(self, other: Source, data: str) -> Source:
        """The two parts of one data set, whose sha256 is `data`. BadInput where they overlap."""
        if (self.due, self.seed, self.fractions) != (other.due, other.seed, other.fractions):
            raise BadInput(
                f"statistics of one data set ({data[:12]}...) under different splits do not add "
                "up: use the same --seed and --split for every part"
            )
        twice = np.intersect1d(self.samples, other.samples)
        if twice.size:
            raise BadInput(
                f"{twice.size} samples of data set {data[:12]}... (sample {twice[0]} is one) are "
                "in two of the statistics: give every part once"
            )
        return replace(
            self,
            fit=np.sort(np.concatenate([self.fit, other.fit])),
            select=np.sort(np.concatenate([self.select, other.select])),
            features=self.features.merged(other.features),
        )


@dataclass(frozen=True, eq=False)
class Evidence:
    """Moments on fit and on select, and features of layers; `sources` by sha256 of their data.

    `model` is the sha256 of the model; `observed` are the shapes that its layout rests on, and
    `droppable` the outputs that may go with a span; `random` tells of made-up data.
    """

    model: str
    mask: str | None
    random: bool
    droppable: frozenset[str]
    observed: ObservedShapes
    fit: Statistics
    select: Statistics
    sources: Mapping[str, Source]

    @property
    def _kind(self) -> object:
        return self.mask, self.droppable, self.fit.pairs

    @property
    def held(self) -> int:
        """Samples that are in."""
        return sum(len(source.samples) for source in self.sources.values())

    @property
    def due(self) -> int:
        """Samples that are in once every part of these data sets is there."""
        return sum(source.due for source in self.sources.values())

    @property
    def features(self) -> Features:
        """Of all sources, one after another."""
        return joined([self.sources[data].features for data in sorted(self.sources)])

    def merged(self, other: Evidence) -> Evidence:
        """The evidence of both sets of samples. BadInput where they do not belong together."""
        if self.model != other.model:
            raise BadInput(
                f"statistics of two models (sha256 {self.model[:12]}... and {other.model[:12]}...) "
                "do not add up: give those of one"
            )
        if self._kind != other._kind:
            raise BadInput(
                "statistics of different spans or masks do not add up: gather every part with one "
                "version of blockfold, and the same --mask and --drop-cache"
            )
        sources = dict(self.sources)
        for data, source in other.sources.items():
            sources[data] = sources[data].merged(source, data) if data in sources else source
        return replace(
            self,
            random=self.random or other.random,
            fit=self.fit.merged(other.fit),
            select=self.select.merged(other.select),
            sources=_bounded(sources),
        )


def merge(parts: Sequence[Evidence]) -> Evidence:
    """All parts, of which there is at least one, as one."""
    return reduce(Evidence.merged, parts)


def _bounded(sources: Mapping[str, Source]) -> dict[str, Source]:
    """The sources with features of at most MOST_SAMPLES samples between them, the first ones."""
    left, found = MOST_SAMPLES, {}
    for data in sorted(sources):
        features = sources[data].features
        found[data] = replace(sources[data], features=features.rows(slice(left)))
        left -= min(left, len(features))
    return found


def pair_of(span: Span) -> Pair:
    """The ends of a span that keeps the shape."""
    return Pair(span.entry, span.exit, span.channel_axis)


def pairs_of(layout: Layout) -> list[Pair]:
    """The ends of the spans that a survey measures: those that keep the shape."""
    return [pair_of(span) for span in layout.spans if not span.strides]


class Gatherer:
    """Gathers a task's evidence, any part of its samples at a time, with a group of processes."""

    def __init__(
        self, task: Task, layout: Layout, group: Processes, choose: ChooseSweep = Sweep
    ) -> None:
        self._task, self._layout, self._group = task, layout, group
        self._sweep = choose(task, pairs_of(layout), Layers(task, layout).taps)
        self._widths = widths_of(task.plain.graph, layout)

    def __call__(self, samples: Samples) -> Evidence:
        """Evidence of those of the given samples that are of the fit or select split.

        Every process of the group runs its share of them and gets the evidence of all.
        """
        task, group, splits, widths = self._task, self._group, self._task.splits, self._widths
        fit, select = (np.intersect1d(part, samples) for part in (splits.fit, splits.select))
        mine = [group.share(part) for part in (fit, select)]
        layers = Layers(task, self._layout)
        with task.stage("survey", sum(map(len, mine))) as advance:
            moments = [self._sweep(part, advance, layers) for part in mine]
        features = layers.features().reduced(group, compared(task, fit), widths)
        source = Source(fit, select, due(splits), splits.seed, splits.fractions, features)
        whole = [statistics.reduced(group, widths) for statistics in moments]
        return Evidence(
            task.model.sha256,
            task.mask,
            task.data.random,
            task.droppable,
            self._layout.observed,
            whole[0],
            whole[1],
            {task.data.digest: source},
        )


def surveyed(splits: Splits) -> Samples:
    """The samples that evidence is gathered on: those of fit and select, ascending."""
    return np.sort(np.concatenate([splits.fit, splits.select]))


def due(splits: Splits) -> int:
    return len(splits.fit) + len(splits.select)


def widths_of(graph: Graph, layout: Layout) -> dict[str, int]:
    """Channels of every value that a survey looks at."""
    axes = {
        name: layout.channel_axis(graph, name)
        for name, shapes in layout.observed.items()
        if len(shapes[0]) > 1
    }
    axes |= {value: pair.channel_axis for pair in pairs_of(layout) for value in (pair.x, pair.y)}
    return {name: layout.observed[name][0][axis] for name, axis in axes.items()}
