"""Does training with LaCoOT let more blocks go?

For the same network and recipe, with and without the penalty: blocks are replaced by the identity
in the order of their max-sliced Wasserstein distance on the images trained on, nothing fine-tuned,
as long as accuracy on half of the unseen images is at most one point below what it was; accuracy is
told on the other half. Beside it, what blockfold itself replaces at --max-drop 2%.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ...passes.condition import LaCoOT
from ..demo import train
from .digits import compressed, opened, trained
from .tables import spread, table

WEIGHTS = (0.0, 0.1, 1.0)
MOST_LOST = 0.01
PROMISE = 0.02


def report(seeds: Sequence[int]) -> Iterator[str]:
    rows = []
    for weight in WEIGHTS:
        found = [_one(seed, weight) for seed in seeds]
        before, gone, after, replaced, saved = zip(*found, strict=True)
        rows.append(
            (
                f"{weight:g}" if weight else "none",
                spread([100 * value for value in before]),
                spread(gone, 1),
                spread([100 * value for value in after]),
                spread(replaced, 1),
                spread([100 * value for value in saved], 0),
            )
        )
    yield from table(
        (
            "weight of LaCoOT",
            "accuracy, %",
            "blocks gone",
            "accuracy then, %",
            "blocks replaced by blockfold",
            "FLOPs it saves, %",
        ),
        rows,
    )


def _one(seed: int, weight: float) -> tuple[float, int, float, float, float]:
    model = trained(seed, lacoot=weight)
    seen, _, images, labels = train.split(seed)
    half = len(images) // 2
    thinned, gone = copy.deepcopy(model), 0
    allowed = train.accuracy(model, images[:half], labels[:half]) - MOST_LOST
    for name in _order(model, torch.from_numpy(seen)):
        tried = copy.deepcopy(thinned)
        tried.set_submodule(name, nn.Identity())
        if train.accuracy(tried, images[:half], labels[:half]) < allowed:
            break
        thinned, gone = tried, gone + 1
    before, after = (train.accuracy(m, images[half:], labels[half:]) for m in (model, thinned))
    with opened(model, seed) as task:
        replaced, saved = compressed(task, PROMISE)
    return before, gone, after, replaced, saved


def _order(model: train.VisionTransformer, images: torch.Tensor) -> list[str]:
    with LaCoOT(model, weight=1.0) as lacoot, torch.no_grad():
        model(images)
        return lacoot.order()
