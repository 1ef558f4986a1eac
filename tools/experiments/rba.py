"""RBA's experiment: a span of blocks skipped, or replaced by a map, and a linear head retrained.

    skip       y ~ x
    rba        y ~ x T, T by plain least squares, no bias, on half of the unseen images
    blockfold  its map of the span, later linear operations solved again

Accuracy on the other half, of a linear head trained on the features of the first half, the
original's too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ...calibration.runtime import Runner
from ...ir.onnx_file import OnnxModel
from ...ir.spans import Span, prove
from ...passes.layout import lay_out
from ...passes.methods import PLAIN
from ...passes.pipeline import build
from ...passes.recipe import Healing, Recipe
from ...passes.search import EMPHASES
from ...passes.surrogates import Form, Wish
from ...passes.task import Samples, Task
from ...passes.trial import Trials
from .digits import DEEP_DEPTH, deep, free, opened
from .tables import spread, table

LENGTHS = (1, 2, 3)
METHODS = ("skip", "rba", "blockfold")


def report(seeds: Sequence[int]) -> Iterator[str]:
    found = [_accuracies(seed) for seed in seeds]
    rows = []
    for span in found[0]:
        means = [
            spread([100 * one[span][method] for one in found]) for method in ("original", *METHODS)
        ]
        rows.append((span, *means))
    yield from table(("blocks removed", "original", *METHODS), rows)
    for method in ("skip", "rba"):
        pairs = [(cell["blockfold"], cell[method]) for one in found for cell in one.values()]
        below, level = sum(a < b for a, b in pairs), sum(a == b for a, b in pairs)
        yield f"blockfold is below {method} in {below} of {len(pairs)} cells, level in {level}."
    yield ""


def _accuracies(seed: int) -> dict[str, dict[str, float]]:
    """Per span, and per method, the accuracy of a head trained on what the method leaves."""
    found = {}
    with opened(deep(seed), seed) as task:
        layout = lay_out(task)
        (stream,) = layout.anatomies
        original = _probed(task, task.plain)
        with Trials(task, layout, free(layout), None) as trials:
            for length in LENGTHS:
                for first in range(DEEP_DEPTH - length + 1):
                    run = stream.blocks[first : first + length]
                    span = prove(
                        task.plain.graph, stream, run[0].start, run[-1].stop, layout.observed
                    )
                    assert isinstance(span, Span)
                    made = trials.solved_on_both(trials.fit_all(_recipes(trials, span)))
                    accuracies = [_probed(task, build(task.plain, each)) for each in made]
                    name = f"{first} .. {first + length - 1}" if length > 1 else str(first)
                    found[name] = dict(zip(METHODS, accuracies, strict=True)) | {
                        "original": original
                    }
    return found


def _recipes(trials: Trials, span: Span) -> list[Recipe]:
    form = trials.forms.richer(span, trials.forms.mapping(span))
    given: list[tuple[Form, Healing]] = [
        ("identity", PLAIN),
        ("affine", PLAIN),
        (form, Healing(EMPHASES[-1], EMPHASES[-1])),
    ]
    return [Recipe((Wish(span, form),), healing) for form, healing in given]


def _probed(task: Task, model: OnnxModel) -> float:
    """Accuracy on the certify split of a head trained on the fit and select splits' features."""
    splits = task.splits
    seen = np.sort(np.concatenate([splits.fit, splits.select]))  # the order of batches
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    head.fit(_features(task, model, seen), task.labels(seen))
    return float(head.score(_features(task, model, splits.certify), task.labels(splits.certify)))


def _features(task: Task, model: OnnxModel, samples: Samples) -> NDArray[np.floating]:
    """What the model's own head reads, (samples, width)."""
    name = model.graph.producer[task.output].inputs[0]
    runner = Runner(model, task.runtime, [name])
    batches = task.data.batches(samples, task.batch)
    return np.concatenate([runner(batch.feeds)[name] for batch in batches])
