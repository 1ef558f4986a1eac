"""The task: a model, its data and how both are run and judged, checked before any work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration.data import Batch, Dataset
from ..calibration.masks import find_mask
from ..calibration.moments import Array
from ..calibration.quality import (
    Judge,
    Outputs,
    Scorer,
    Scores,
    default_metric,
    find_metric,
    is_exact,
)
from ..calibration.runtime import Runner, Runtime, fixed_batch
from ..calibration.splits import Splits
from ..calibration.tape import Piece
from ..ir.errors import BadInput, Unsupported
from ..ir.onnx_cache import find_caches
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_unfuse import unfuse
from ..ir.scratch import Scratch, storing

Samples = NDArray[np.int64]
Advance = Callable[[int], None]
Stage = Callable[[str, int], AbstractContextManager[Advance]]
"""Opens a stage of work by name and total steps; what it gives is told of each step done."""


def silent(_name: str, _total: int) -> AbstractContextManager[Advance]:
    """A Stage that shows nothing."""
    return nullcontext(lambda _steps: None)


def smooth(metric: str) -> str:
    """The metric that tells small damages by another apart on few samples."""
    return "kl" if metric in ("accuracy", "agreement") else metric


def thinned(samples: Samples, most: int) -> Samples:
    """At most so many of the samples, evenly spread."""
    if len(samples) <= most:
        return samples
    return samples[np.linspace(0, len(samples) - 1, most).round().astype(np.int64)]


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be optimized or judged, and on what.

    `metric` names what scores the value `output`, and `own` is its function where that is the
    user's; `mask` is the input that marks padding, if any. With `drop_cache` the caches of a
    decoder may go with the blocks that keep them.
    """

    model: OnnxModel
    data: Dataset
    splits: Splits
    runtime: Runtime
    metric: str
    output: str
    mask: str | None
    batch: int
    stage: Stage = field(default=silent)
    own: Judge | None = None
    drop_cache: bool = False

    @cached_property
    def plain(self) -> OnnxModel:
        """The model as it is analysed and edited: no residual sum hidden in a fused operator."""
        return unfuse(self.model)

    @cached_property
    def droppable(self) -> frozenset[str]:
        """Outputs that may go with the block that makes them; never the one that is judged."""
        return droppable(self.plain) - {self.output} if self.drop_cache else frozenset()

    @cached_property
    def _judged(self) -> frozenset[int]:
        return frozenset(self.plain.graph.needed_by([self.output]))

    def depends_on(self, value: str) -> bool:
        """Whether the output that is judged is made from it: else no damage to it would show."""
        maker = self.plain.graph.producer.get(value)
        return maker is None or maker.index in self._judged

    @property
    def is_exact(self) -> bool:
        """Whether the metric has an exact bound: every sample is right or wrong, by itself."""
        return self.data.groups is None and is_exact(self.metric, self.data.labels)

    @property
    def smooth(self) -> str:
        """The metric that tells small damages apart on few samples."""
        return smooth(self.metric)

    def labels(self, samples: Samples) -> NDArray[np.generic] | None:
        return None if self.data.labels is None else self.data.labels[samples]

    def units(self, samples: Samples) -> int:
        """How many scores these samples have: one each, or one for each of their groups."""
        groups = self.data.groups
        return len(samples) if groups is None else len(np.unique(groups[samples]))

    def padding(self, batch: Batch | Piece) -> Array | None:
        """The mask (rows, length) of a batch, 0 for padding; None where the data has none."""
        return None if self.mask is None else np.asarray(batch.feeds[self.mask], np.float64)


def make_task(
    model: OnnxModel,
    data: Dataset,
    splits: Splits,
    runtime: Runtime,
    *,
    metric: str | Judge | None = None,
    output: str | None = None,
    mask: str | None = None,
    batch: int = 32,
    stage: Stage = silent,
    drop_cache: bool = False,
) -> Task:
    """Fill in defaults and check that metric, output and mask fit the model and the data.

    metric: one of METRICS, a function, or text `module:attribute`, which is imported.
    """
    outputs = [name for name in model.graph.outputs if model.graph.value(name).is_float]
    if not outputs:
        raise Unsupported("the model has no floating output, so nothing can be compared")
    if output is not None and output not in outputs:
        raise BadInput(f"--output {output}: no such floating output; there is {', '.join(outputs)}")
    chosen = output or outputs[0]
    rank = len(model.graph.value(chosen).shape or (None, None))
    name, own = find_metric(
        default_metric(rank, data.labels is not None) if metric is None else metric
    )
    if name in ("accuracy", "perplexity") and data.labels is None:
        raise BadInput(f"--metric {name} needs labels: add an array `labels` to the data")
    return Task(
        model,
        data,
        splits,
        runtime,
        name,
        chosen,
        find_mask(model.inputs, mask),
        batch,
        stage,
        own,
        drop_cache,
    )


def droppable(model: OnnxModel) -> frozenset[str]:
    """The outputs of a model that are caches."""
    return frozenset(cache.present for cache in find_caches(model))


class Reference:
    """The original model's outputs on some samples, kept on disk, to score other models against."""

    def __init__(self, task: Task, samples: Samples, stage: str) -> None:
        self._task, self.samples = task, samples
        self._scratch = Scratch()
        runner = Runner(task.model, task.runtime, pooled=True)
        size = runner.fixed_batch or task.batch
        with task.stage(stage, len(samples)) as advance:
            for at, batch in enumerate(task.data.batches(samples, size)):
                output = runner(batch.feeds)[task.output]
                if output.shape[:1] != (len(batch.samples),):
                    raise BadInput(
                        f"output {task.output!r} of shape {output.shape} has no axis of samples; "
                        "choose another with --output"
                    )
                with storing():
                    np.save(self._file(at), output)
                advance(len(batch.samples))

    def _file(self, at: int) -> Path:
        return self._scratch.path / f"{at}.npy"

    def outputs(self) -> Iterator[NDArray[Any]]:
        """The original's outputs (rows, ...), batch by batch."""
        size = fixed_batch(self._task.model) or self._task.batch
        for at, _ in enumerate(self._task.data.batches(self.samples, size)):
            yield np.load(self._file(at), mmap_mode="r")

    def score(self, model: OnnxModel) -> Scores:
        """Scores of another model on the same samples, ascending, or on their groups."""
        task = self._task
        runner = Runner(model, task.runtime, pooled=True)
        size = runner.fixed_batch or task.batch
        batches = task.data.batches(self.samples, size)
        return self.score_outputs(runner(batch.feeds)[task.output] for batch in batches)

    def score_outputs(self, outputs: Iterable[NDArray[Any]]) -> Scores:
        """Scores of the outputs (rows, ...) that another model gave, batch by batch."""
        (scores,) = self._scored(outputs, [self._task.metric])
        return scores

    def judge(self, outputs: Iterable[NDArray[Any]]) -> tuple[Scores, float]:
        """Scores of such outputs, and their mean damage by the task's smooth metric."""
        scores, *smooth = self._scored(
            outputs, list(dict.fromkeys([self._task.metric, self._task.smooth]))
        )
        return scores, (smooth or [scores])[0].drop

    def _scored(self, outputs: Iterable[NDArray[Any]], metrics: Sequence[str]) -> list[Scores]:
        task = self._task
        scorers = [Scorer(metric, task.own) for metric in metrics]
        size = fixed_batch(task.model) or task.batch
        batches = task.data.batches(self.samples, size)
        for batch, new, original in zip(batches, outputs, self.outputs(), strict=True):
            labels, padding = task.labels(batch.samples), task.padding(batch)
            for scorer in scorers:
                scorer.add(Outputs(original, new, labels, padding))
        groups, found = task.data.groups, [scorer.scores() for scorer in scorers]
        if groups is None:
            return found
        return [scores.by_group(groups[np.sort(self.samples)]) for scores in found]

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *error: object) -> None:
        self._scratch.close()
