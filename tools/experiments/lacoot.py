"""Does training with LaCoOT let more blocks go?

The same network and recipe, without the penalty, with it as published, and with distances relative
to how far a block's input spreads. After training, blocks are replaced by
the identity in the order of their max-sliced Wasserstein distance on the images trained on, nothing
fine-tuned. How many may go within a drop is seen on half of the unseen images, accuracy is that on
the other half. Beside it, the share of FLOPs that blockfold itself saves at --max-drop 2%.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...passes.condition import LaCoOT
from ..demo import train
from .digits import compressed, deep, opened
from .tables import spread, table

PENALTIES = ((0.0, False), (0.1, False), (1.0, False), (0.3, True))
"""Weight, and whether distances are relative."""

SHOWN = 4
"""Blocks removed, at most, in the columns of accuracy."""

DROPS = (0.01, 0.03)
PROMISE = 0.02


@dataclass(frozen=True)
class Removal:
    """Accuracies with 0, 1, 2, ... blocks removed, on either half; what blockfold saves."""

    judged: tuple[float, ...]
    told: tuple[float, ...]
    saved: float

    def gone(self, drop: float) -> int:
        """How many blocks go before the first that costs more."""
        for removed, accuracy in enumerate(self.judged):
            if accuracy < self.judged[0] - drop:
                return removed - 1
        return len(self.judged) - 1


def report(seeds: Sequence[int]) -> Iterator[str]:
    rows = []
    for weight, relative in PENALTIES:
        found = [_one(seed, weight, relative) for seed in seeds]
        rows.append(
            (
                f"{weight:g}{', relative' if relative else ''}" if weight else "none",
                *(spread([100 * one.told[at] for one in found], 1) for at in range(SHOWN + 1)),
                *(spread([one.gone(drop) for one in found], 1) for drop in DROPS),
                spread([100 * one.saved for one in found], 0),
            )
        )
    yield from table(
        (
            "weight",
            "accuracy, %",
            *(f"{count} gone" for count in range(1, SHOWN + 1)),
            *(f"gone within {100 * drop:g} points" for drop in DROPS),
            "FLOPs blockfold saves, %",
        ),
        rows,
    )


def _one(seed: int, weight: float, relative: bool) -> Removal:
    model = deep(seed, weight, relative)
    seen, _, images, labels = train.split(seed)
    half = len(images) // 2
    with LaCoOT(model, weight=1.0, relative=relative) as lacoot, torch.no_grad():
        model(torch.from_numpy(seen))
        order = lacoot.order()
    judged, told, thinned = [], [], copy.deepcopy(model)
    for name in (None, *order):
        if name is not None:
            thinned.set_submodule(name, nn.Identity())
        judged.append(train.accuracy(thinned, images[:half], labels[:half]))
        told.append(train.accuracy(thinned, images[half:], labels[half:]))
    with opened(model, seed) as task:
        _, saved = compressed(task, PROMISE)
    return Removal(tuple(judged), tuple(told), saved)
