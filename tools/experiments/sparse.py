"""Does CKA-SR help sparse training?

A third of the way through training the weights of least magnitude in all blocks together are set to
zero, and stay so. Accuracy on unseen images at two sparsities, with and without the penalty, seed
by seed in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ...passes.condition import CKASR
from ..demo import train
from .digits import DEPTH, EPOCHS, WIDTH
from .tables import each, spread, table

SPARSITIES = (0.8, 0.95)
WEIGHTS = (0.0, 1e-4, 1e-2)
PRUNED_AT = 1 / 3


def report(seeds: Sequence[int]) -> Iterator[str]:
    rows = []
    for sparsity in SPARSITIES:
        found = {w: [100 * _accuracy(seed, sparsity, w) for seed in seeds] for w in WEIGHTS}
        for weight, reached in found.items():
            gains = [a - b for a, b in zip(reached, found[0.0], strict=True)]
            rows.append(
                (
                    f"{sparsity:.0%}",
                    f"{weight:g}" if weight else "none",
                    spread(reached),
                    each(gains) if weight else "",
                )
            )
    yield from table(
        ("sparsity", "weight of CKA-SR", "accuracy, %", "points gained, seed by seed"), rows
    )


def _accuracy(seed: int, sparsity: float, weight: float) -> float:
    images, labels, unseen, truth = train.split(seed)
    torch.manual_seed(seed)
    model = train.VisionTransformer(WIDTH, DEPTH)
    pruner = Pruner(model.blocks, sparsity)
    with ExitStack() as stack:
        penalty: Callable[[], Tensor] | None = None
        if weight:
            penalty = stack.enter_context(CKASR(model, weight=weight)).penalty
        train.fit(model, images, labels, EPOCHS, penalty=penalty, after_step=pruner)
    return train.accuracy(model, unseen, truth)


class Pruner:
    """Keeps matrices sparse from PRUNED_AT on: the same entries, those smallest at that time."""

    def __init__(self, model: nn.Module, sparsity: float) -> None:
        self._weights = [weight for weight in model.parameters() if weight.ndim > 1]
        self._sparsity = sparsity
        self._kept: list[Tensor] = []

    def __call__(self, done: float) -> None:
        if done < PRUNED_AT:
            return
        with torch.no_grad():
            if not self._kept:
                sizes = torch.cat([weight.abs().flatten() for weight in self._weights])
                least = sizes.quantile(self._sparsity)
                self._kept = [weight.abs() > least for weight in self._weights]
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.mul_(kept)
