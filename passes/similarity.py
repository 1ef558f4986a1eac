"""Similarity: how alike the layers of a model are, by the metrics that compare whole batches.

Of every two layers of a stream also how little its rows move from one to the other. For all else,
features of a layer are the value at its cut, averaged over the positions of a sample that are no
padding, so that memory does not grow with length. They are kept for a bounded number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
from ..ir.blocks import Anatomy
from ..ir.onnx_activations import rectified
from ..ir.spans import channel_axis, span_name
from .layout import Layout
from .task import Samples, Task

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


class Layers:
    """What the layers of a task's model hold, gathered batch by batch from the values of `taps`."""

    def __init__(self, task: Task, layout: Layout) -> None:
        self._task, self._streams = task, layout.anatomies
        graph = task.plain.graph
        cuts = [cut.first for stream in self._streams for cut in stream.chain.cuts]
        cuts = [name for name in dict.fromkeys(cuts) if len(layout.observed[name][0]) > 1]
        made = rectified(task.plain)
        self._rectifiers = {
            (stream.chain.source, unit.start): [
                made[node.index] for node in unit.nodes if node.index in made
            ]
            for stream in self._streams
            for unit in stream.units
        }
        self._sides = {name: SideCounts() for unit in self._rectifiers.values() for name in unit}
        self._axes = {
            name: channel_axis(graph, name, name, layout.observed) for name in (*cuts, *self._sides)
        }
        self._pairs = {
            stream.chain.source: Pairwise(
                {cut.first: self._axes[cut.first] for cut in stream.chain.cuts if cut.first in cuts}
            )
            for stream in self._streams
        }
        self._features: dict[str, list[Floats]] = {name: [] for name in cuts}
        self._outputs: list[Floats] = []
        self._samples: list[Samples] = []
        self.taps = (*cuts, *self._sides)

    def add(self, batch: Batch, values: Mapping[str, Floats]) -> None:
        """One batch; once MOST_SAMPLES were seen it changes nothing."""
        if sum(map(len, self._samples)) >= MOST_SAMPLES:
            return
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

    def streams(self) -> tuple[StreamLayers, ...]:
        """The streams with their layers; none where no unbiased CKA can be had of the samples."""
        count = sum(map(len, self._samples))
        if count < LEAST_UNBIASED:
            return ()
        features = {name: np.concatenate(parts) for name, parts in self._features.items()}
        classes, communities = self._classes()
        found = []
        for stream in self._streams:
            sides = [
                [self._sides[name] for name in self._rectifiers[stream.chain.source, at]]
                for at in range(len(stream.units))
            ]
            if sum(cut.first in features for cut in stream.chain.cuts) > 1:
                pairs = self._pairs[stream.chain.source]
                found.append(StreamLayers(stream, features, pairs, classes, communities, sides))
        return tuple(found)

    def _classes(self) -> tuple[NDArray[np.generic] | None, Communities | None]:
        """The communities: true labels, else what the model itself takes samples for."""
        labels = self._task.labels(np.concatenate(self._samples))
        if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub":
            return labels, "labels"
        judged_by_class = self._task.metric in ("accuracy", "agreement")
        if judged_by_class and all(out.ndim == 2 and out.shape[1] > 1 for out in self._outputs):
            classes = np.concatenate([output.argmax(axis=1) for output in self._outputs])
            return classes, "the model's own classes"
        return None, None


class StreamLayers:
    """The layers of one stream compared, any two of them."""

    def __init__(
        self,
        stream: Anatomy,
        features: Mapping[str, Floats],
        pairs: Pairwise,
        classes: NDArray[np.generic] | None,
        communities: Communities | None,
        sides: Sequence[Sequence[SideCounts]],
    ) -> None:
        self.stream, self._communities, self._sides = stream, communities, sides
        self._pairs = pairs
        known = [at for at, cut in enumerate(stream.chain.cuts) if cut.first in features]
        self._places = {cut: at for at, cut in enumerate(known)}
        self._layers = [features[stream.chain.cuts[cut].first] for cut in known]
        self._count = len(next(iter(features.values())))
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
    samples = task.splits.fit[:MOST_SAMPLES]
    layers = Layers(task, layout)
    runner = Runner(task.plain, task.runtime, layers.taps)
    with task.stage("similarity of layers", len(samples)) as advance:
        for batch in task.data.batches(samples, runner.fixed_batch or task.batch):
            layers.add(batch, runner(batch.feeds))
            advance(len(batch.samples))
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
