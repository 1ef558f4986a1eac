"""Similarity: how alike the layers of a model are, by the metrics that compare whole batches.

Of every two layers of a stream also how little its rows move from one to the other. For all else,
features of a layer are the value at its cut, averaged over the positions of a sample that are no
padding, so that memory does not grow with length. They are kept for a bounded number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..calibration.data import Batch
from ..calibration.features import pooled_mean, require_finite
from ..calibration.metrics.activation_entropy import SideCounts
from ..calibration.metrics.cka import LEAST_UNBIASED, MeanCKA
from ..calibration.metrics.modularity import NEIGHBOURS, modularity_curve
from ..calibration.metrics.msrs import msrs
from ..calibration.metrics.sliced_wasserstein import max_sliced_wasserstein
from ..calibration.pairwise import Pairwise
from ..calibration.runtime import Runner
from ..calibration.spread import Processes
from ..ir.blocks import Anatomy
from ..ir.graph import Graph
from ..ir.onnx_activations import rectified
from ..ir.onnx_file import OnnxModel
from ..ir.spans import span_name
from .layout import Layout
from .task import Advance, Samples, Task

MOST_SAMPLES = 2048
CKA_BATCH = 256
"""Samples a kernel is made of; published so, with the mean over batches."""

MODULARITY_BATCH = 500

Floats = NDArray[np.floating]
Communities = Literal["labels", "the model's own classes"]


@dataclass(frozen=True)
class Likeness:
    """How alike the ends of a stretch are: CKA, how far it moves their distribution, what it adds
    to Q; and how often its rectifiers change sides, in bits.

    `max_sliced_wasserstein` is None where the ends differ in width, `modularity_gain` where no
    classes are known, `activation_entropy` where the stretch has no rectifier.
    """

    name: str
    cka: float
    max_sliced_wasserstein: float | None
    modularity_gain: float | None
    activation_entropy: float | None


@dataclass(frozen=True)
class Similarity:
    """The layers of one stream, a layer being what a cut holds.

    `cka` (layers, layers) is unbiased; `msrs` counts similar pairs, `msrs_per_pair` is their share;
    `modularity` (layers,) is None where no classes are known. `block_redundancy` and `cosine`
    (layers, layers) are of rows, None between layers of unlike shape. `cuts` are the places of the
    layers in the chain.
    """

    stream: str
    samples: int
    cuts: tuple[int, ...]
    cka: tuple[tuple[float, ...], ...]
    block_redundancy: tuple[tuple[float | None, ...], ...]
    cosine: tuple[tuple[float | None, ...], ...]
    msrs: float
    msrs_per_pair: float
    modularity: tuple[float, ...] | None
    communities: Communities | None
    units: tuple[Likeness, ...]


@dataclass(frozen=True, eq=False)
class Features:
    """What layers are compared by, of some samples; adds up where no two parts share a sample.

    `samples` (n,) ascend; `layers` are (n, channels) float32, by the first value of the cut;
    `classes` (n,) int64, None where `communities` is; `sides` are counts of rectifiers, by value,
    and `pairs` sums over every two layers, by stream.
    """

    samples: Samples
    layers: Mapping[str, NDArray[np.float32]]
    classes: NDArray[np.int64] | None
    communities: Communities | None
    sides: Mapping[str, SideCounts]
    pairs: Mapping[str, Pairwise]

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, chosen: NDArray[np.int64] | slice) -> Features:
        """Those at the given places; counts of rectifiers and sums over layers stay."""
        return replace(
            self,
            samples=self.samples[chosen],
            layers={name: rows[chosen] for name, rows in self.layers.items()},
            classes=None if self.classes is None else self.classes[chosen],
        )

    def merged(self, other: Features) -> Features:
        """Those of both, by sample; without classes unless both have them, and of one kind."""
        if not (len(self) and len(other)):
            return self if len(self) else other
        both = joined([self, other])
        return both.rows(np.argsort(both.samples, kind="stable"))

    def reduced(self, group: Processes, samples: Samples, widths: Mapping[str, int]) -> Features:
        """Those of all processes, on the `samples` (n,) that these have between them."""
        if group.size == 1:
            return self
        places = np.searchsorted(samples, self.samples)

        def whole(rows: NDArray[np.generic], *width: int) -> NDArray[Any]:
            room = np.zeros((len(samples), *width), rows.dtype)
            room[places] = rows
            return group.sum(room)

        nothing = np.zeros(len(self), np.int64)
        classes = whole(nothing if self.classes is None else self.classes)
        kinds: list[Communities | None] = ["labels", "the model's own classes", None]
        mine = [self.communities == kind and len(self) > 0 for kind in kinds]
        votes = group.sum(np.array(mine, np.int64))
        kind = kinds[int(np.flatnonzero(votes)[0])] if np.count_nonzero(votes) == 1 else None
        return Features(
            samples,
            {name: whole(rows, widths[name]) for name, rows in self.layers.items()},
            None if kind is None else classes,
            kind,
            {name: _all_counts(counts, group) for name, counts in self.sides.items()},
            {stream: pairs.reduced(group) for stream, pairs in self.pairs.items()},
        )


def joined(parts: Sequence[Features]) -> Features:
    """Features one after another, of one or more data sets."""
    first, *others = parts
    kind = first.communities if all(p.communities == first.communities for p in others) else None
    known = [part.classes for part in parts if part.classes is not None]
    sides = {name: SideCounts() for name in first.sides}
    for name, counts in sides.items():
        for part in parts:
            counts.absorb(part.sides[name])
    return Features(
        np.concatenate([part.samples for part in parts]),
        {name: np.concatenate([part.layers[name] for part in parts]) for name in first.layers},
        None if kind is None else np.concatenate(known),
        kind,
        sides,
        {
            stream: reduce(Pairwise.merged, (part.pairs[stream] for part in parts))
            for stream in first.pairs
        },
    )


def _all_counts(counts: SideCounts, group: Processes) -> SideCounts:
    """The counts of all processes, some of which may have seen nothing."""
    own = np.zeros(group.size, np.int64)
    own[group.rank] = len(counts.positive)
    positive = np.zeros(group.sum(own).max(), np.int64)
    positive[: len(counts.positive)] = counts.positive
    rows = group.sum(np.array([counts.rows]))[0]
    return SideCounts.of(int(rows), group.sum(positive).astype(np.int64))


def layers_of(layout: Layout) -> list[str]:
    """The values that layers are compared by: the first of every cut that has channels."""
    names = [cut.first for stream in layout.anatomies for cut in stream.chain.cuts]
    return [name for name in dict.fromkeys(names) if len(layout.observed[name][0]) > 1]


def pairs_of_layers(graph: Graph, layout: Layout) -> dict[str, Pairwise]:
    """Per stream the sums over every two of its layers, of no rows yet."""
    known = set(layers_of(layout))
    return {
        stream.chain.source: Pairwise(
            {
                cut.first: layout.channel_axis(graph, cut.first)
                for cut in stream.chain.cuts
                if cut.first in known
            }
        )
        for stream in layout.anatomies
    }


Rectifiers = Mapping[tuple[str, int], Sequence[str]]
"""The values that rectifiers make, by stream and first cut of their unit."""


def rectifiers_of(model: OnnxModel, layout: Layout) -> Rectifiers:
    """Those of a model as it is analysed."""
    made = rectified(model)
    return {
        (stream.chain.source, unit.start): [
            made[node.index] for node in unit.nodes if node.index in made
        ]
        for stream in layout.anatomies
        for unit in stream.units
    }


class Layers:
    """What the layers of a task's model hold, gathered batch by batch from the values of `taps`."""

    def __init__(self, task: Task, layout: Layout) -> None:
        self._task, self._layout = task, layout
        graph, cuts = task.plain.graph, layers_of(layout)
        self._rectifiers = rectifiers_of(task.plain, layout)
        self._sides = {name: SideCounts() for unit in self._rectifiers.values() for name in unit}
        self._axes = {name: layout.channel_axis(graph, name) for name in (*cuts, *self._sides)}
        self._features: dict[str, list[Floats]] = {
            name: [np.zeros((0, layout.observed[name][0][self._axes[name]]), np.float32)]
            for name in cuts
        }
        self._pairs = pairs_of_layers(graph, layout)
        self._outputs: list[Floats] = []
        self._samples: list[Samples] = []
        self.taps = (*cuts, *self._sides)

    def run(self, samples: Samples, advance: Advance = lambda _done: None) -> None:
        """Run the model on samples and add what it gives."""
        if not len(samples):
            return
        task = self._task
        runner = Runner(task.plain, task.runtime, self.taps)
        for batch in task.data.batches(samples, runner.fixed_batch or task.batch):
            self.add(batch, runner(batch.feeds))
            advance(len(batch.samples))

    def add(self, batch: Batch, values: Mapping[str, Floats]) -> None:
        """One batch."""
        mask = self._task.padding(batch)
        for name, parts in self._features.items():
            require_finite(values[name], name)
            parts.append(pooled_mean(values[name], self._axes[name], mask))
        for pairs in self._pairs.values():
            pairs.add(values, mask)
        for name, sides in self._sides.items():
            value, axis = values[name], self._axes[name]
            require_finite(value, name)
            is_masked = mask is not None and mask.shape == np.moveaxis(value, axis, -1).shape[:-1]
            sides.add(np.moveaxis(value, axis, -1)[mask != 0] if is_masked else value, axis)
        self._outputs.append(values[self._task.output])
        self._samples.append(batch.samples)

    def features(self) -> Features:
        """All that was added."""
        classes, communities = self._classes()
        layers = {
            name: np.concatenate(parts).astype(np.float32) for name, parts in self._features.items()
        }
        return Features(self._seen, layers, classes, communities, dict(self._sides), self._pairs)

    def streams(self) -> tuple[StreamLayers, ...]:
        """The streams with their layers; none where no unbiased CKA can be had of the samples."""
        return streams_of(self._layout, self._rectifiers, self.features())

    @property
    def _seen(self) -> Samples:
        return np.concatenate([np.zeros(0, np.int64), *self._samples])

    def _classes(self) -> tuple[NDArray[np.int64] | None, Communities | None]:
        """The communities: true labels, else what the model itself takes samples for."""
        labels = self._task.labels(self._seen)
        if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub":
            return labels.astype(np.int64), "labels"
        judged_by_class = self._task.metric in ("accuracy", "agreement")
        are_logits = all(out.ndim == 2 and out.shape[1] > 1 for out in self._outputs)
        if judged_by_class and are_logits and self._outputs:
            classes = np.concatenate([output.argmax(axis=1) for output in self._outputs])
            return classes, "the model's own classes"
        return None, None


def streams_of(
    layout: Layout, rectifiers: Rectifiers, features: Features
) -> tuple[StreamLayers, ...]:
    """The streams with their layers; none where no unbiased CKA can be had of the samples."""
    if len(features) < LEAST_UNBIASED:
        return ()
    found = []
    for stream in layout.anatomies:
        sides = [
            [features.sides[name] for name in rectifiers[stream.chain.source, at]]
            for at in range(len(stream.units))
        ]
        if sum(cut.first in features.layers for cut in stream.chain.cuts) > 1:
            found.append(StreamLayers(stream, features, sides))
    return tuple(found)


class StreamLayers:
    """The layers of one stream compared, any two of them."""

    def __init__(
        self, stream: Anatomy, features: Features, sides: Sequence[Sequence[SideCounts]]
    ) -> None:
        self.stream, self._communities, self._sides = stream, features.communities, sides
        self._pairs = features.pairs[stream.chain.source]
        classes, layers = features.classes, features.layers
        known = [at for at, cut in enumerate(stream.chain.cuts) if cut.first in layers]
        self._places = {cut: at for at, cut in enumerate(known)}
        self._layers = [layers[stream.chain.cuts[cut].first] for cut in known]
        self._count = len(features)
        kernels = MeanCKA(unbiased=True)
        for begin, end in _batches(self._count, CKA_BATCH, LEAST_UNBIASED):
            kernels.add([layer[begin:end] for layer in self._layers])
        self._cka = np.asarray(kernels.mean)
        self._curve: NDArray[np.float64] | None = None
        if classes is not None:
            parts = [
                modularity_curve([layer[begin:end] for layer in self._layers], classes[begin:end])
                for begin, end in _batches(self._count, MODULARITY_BATCH, NEIGHBOURS + 1)
            ]
            self._curve = np.mean(parts, axis=0)

    def between(self, start: int, stop: int) -> Likeness | None:
        """Of the stretch from cut `start` to cut `stop`; None where an end has no features."""
        if start not in self._places or stop not in self._places:
            return None
        first, last = self._places[start], self._places[stop]
        x, y = self._layers[first], self._layers[last]
        moved = float(max_sliced_wasserstein(x, y, seed=0)) if x.shape == y.shape else None
        sides = [counts for unit in self._sides[start:stop] for counts in unit if counts.rows]
        entropies = [entropy for counts in sides for entropy in counts.unit_entropies]
        return Likeness(
            span_name(self.stream, start, stop),
            float(self._cka[first, last]),
            moved,
            None if self._curve is None else float(self._curve[last] - self._curve[first]),
            float(np.mean(entropies)) if entropies else None,
        )

    def summary(self) -> Similarity:
        units = [self.between(unit.start, unit.stop) for unit in self.stream.units]
        return Similarity(
            self.stream.chain.source,
            self._count,
            tuple(self._places),
            tuple(tuple(map(float, row)) for row in self._cka),
            _known(self._pairs.block_redundancy),
            _known(self._pairs.cosine),
            float(msrs(self._cka)),
            float(msrs(self._cka, per_pair=True)),
            None if self._curve is None else tuple(map(float, self._curve)),
            self._communities,
            tuple(unit for unit in units if unit is not None),
        )


def similarity(task: Task, layout: Layout) -> tuple[Similarity, ...]:
    """The similarity of every stream's layers, on samples of the fit split.

    Streams are left out where there are fewer samples than an unbiased CKA needs.
    """
    layers = Layers(task, layout)
    samples = task.splits.fit[:MOST_SAMPLES]
    with task.stage("similarity of layers", len(samples)) as advance:
        layers.run(samples, advance)
    return tuple(stream.summary() for stream in layers.streams())


def _known(matrix: NDArray[np.floating]) -> tuple[tuple[float | None, ...], ...]:
    """Rows of numbers, None for NaN."""
    return tuple(
        tuple(None if np.isnan(value) else float(value) for value in row) for row in matrix
    )


def _batches(count: int, size: int, least: int) -> Sequence[tuple[int, int]]:
    """Stretches of `size` samples; a rest too small to stand alone is left out."""
    found = [(begin, min(begin + size, count)) for begin in range(0, count, size)]
    return [(begin, end) for begin, end in found if end - begin >= least]
