"""Similarity: how alike the layers of a model are, by the metrics that compare whole batches.

Features of a layer are the value at its cut, averaged over the positions of a sample that are no
padding, so that memory does not grow with length. They are kept for a bounded number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..calibration.features import pooled_mean, require_finite
from ..calibration.metrics.cka import LEAST_UNBIASED, MeanCKA
from ..calibration.metrics.modularity import gains, modularity_curve
from ..calibration.metrics.msrs import msrs
from ..calibration.metrics.sliced_wasserstein import max_sliced_wasserstein
from ..calibration.runtime import Runner
from ..ir.blocks import Anatomy
from ..ir.spans import channel_axis, span_name
from .layout import Layout
from .task import Samples, Task

MOST_SAMPLES = 2048
CKA_BATCH = 256
"""Samples a kernel is made of; published so, with the mean over batches."""

MODULARITY_BATCH = 500

Communities = Literal["labels", "the model's own classes"]


@dataclass(frozen=True)
class UnitRecord:
    """A unit: CKA of its ends, how far it moves their distribution, and what it adds to Q.

    `max_sliced_wasserstein` is None where the ends differ in width, `modularity_gain` where no
    classes are known.
    """

    name: str
    cka: float
    max_sliced_wasserstein: float | None
    modularity_gain: float | None


@dataclass(frozen=True)
class Similarity:
    """The layers of one stream, a layer being what a cut holds.

    `cka` (layers, layers) is unbiased; `msrs` counts similar pairs, `msrs_per_pair` is their share;
    `modularity` (layers,) is None where no classes are known.
    """

    stream: str
    samples: int
    cka: tuple[tuple[float, ...], ...]
    msrs: float
    msrs_per_pair: float
    modularity: tuple[float, ...] | None
    communities: Communities | None
    units: tuple[UnitRecord, ...]


def similarity(task: Task, layout: Layout) -> tuple[Similarity, ...]:
    """The similarity of every stream's layers, on samples of the fit split.

    Streams are left out where there are fewer samples than an unbiased CKA needs.
    """
    samples = task.splits.fit[:MOST_SAMPLES]
    if len(samples) < LEAST_UNBIASED:
        return ()
    features, outputs = _features(task, layout, samples)
    classes, communities = _classes(task, samples, outputs)
    return tuple(
        _of_stream(stream, features, classes, communities)
        for stream in layout.anatomies
        if len(stream.chain.cuts) > 1
    )


def _features(
    task: Task, layout: Layout, samples: Samples
) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.floating]]:
    """Per cut its features (samples, channels), and the outputs that are judged."""
    graph = task.plain.graph
    names = [cut.first for stream in layout.anatomies for cut in stream.chain.cuts]
    names = [name for name in dict.fromkeys(names) if len(layout.observed[name][0]) > 1]
    axes = {name: channel_axis(graph, name, name, layout.observed) for name in names}
    runner = Runner(task.plain, task.runtime, names)
    found: dict[str, list[NDArray[np.floating]]] = {name: [] for name in names}
    outputs = []
    with task.stage("similarity of layers", len(samples)) as advance:
        for batch in task.data.batches(samples, runner.fixed_batch or task.batch):
            values = runner(batch.feeds)
            mask = task.padding(batch)
            for name in names:
                require_finite(values[name], name)
                found[name].append(pooled_mean(values[name], axes[name], mask))
            outputs.append(values[task.output])
            advance(len(batch.samples))
    same = len({output.shape[1:] for output in outputs}) == 1
    return (
        {name: np.concatenate(parts) for name, parts in found.items()},
        np.concatenate(outputs) if same else np.zeros((0, 0)),
    )


def _classes(
    task: Task, samples: Samples, outputs: NDArray[np.floating]
) -> tuple[NDArray[np.generic] | None, Communities | None]:
    """The communities: true labels, else what the model itself takes samples for."""
    labels = task.labels(samples)
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub":
        return labels, "labels"
    if outputs.ndim == 2 and outputs.shape[1] > 1 and task.metric in ("accuracy", "agreement"):
        return outputs.argmax(axis=1), "the model's own classes"
    return None, None


def _of_stream(
    stream: Anatomy,
    features: dict[str, NDArray[np.floating]],
    classes: NDArray[np.generic] | None,
    communities: Communities | None,
) -> Similarity:
    cuts = stream.chain.cuts
    known = [at for at, cut in enumerate(cuts) if cut.first in features]
    layers = [features[cuts[at].first] for at in known]
    count = len(layers[0])
    kernels = MeanCKA(unbiased=True)
    for begin, end in _batches(count, CKA_BATCH, LEAST_UNBIASED):
        kernels.add([layer[begin:end] for layer in layers])
    matrix = np.asarray(kernels.mean)
    curve = None
    if classes is not None:
        parts = [
            modularity_curve([layer[begin:end] for layer in layers], classes[begin:end])
            for begin, end in _batches(count, MODULARITY_BATCH, 2)
        ]
        curve = np.mean(parts, axis=0)
    steps = None if curve is None else gains(curve)
    units = []
    for at, (first, second) in enumerate(pairwise(known)):
        x, y = layers[at], layers[at + 1]
        moved = float(max_sliced_wasserstein(x, y, seed=0)) if x.shape == y.shape else None
        units.append(
            UnitRecord(
                span_name(stream, first, second),
                float(matrix[at, at + 1]),
                moved,
                None if steps is None else float(steps[at]),
            )
        )
    return Similarity(
        stream.chain.source,
        count,
        tuple(tuple(map(float, row)) for row in matrix),
        float(msrs(matrix)),
        float(msrs(matrix, per_pair=True)),
        None if curve is None else tuple(map(float, curve)),
        communities,
        tuple(units),
    )


def _batches(count: int, size: int, least: int) -> Sequence[tuple[int, int]]:
    """Stretches of `size` samples; a rest too small to stand alone is left out."""
    found = [(begin, min(begin + size, count)) for begin in range(0, count, size)]
    return [(begin, end) for begin, end in found if end - begin >= least]
