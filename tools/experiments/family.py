"""Does RedTest's measure rank architectures by how much they can be compressed?

Networks of several depths and widths; for each its share of similar layers (MSRS per pair) on the
fit split, and the share of FLOPs that blockfold saves at --max-drop 2%.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scipy.stats import spearmanr

from ...passes.layout import lay_out
from ...passes.similarity import similarity
from ..demo import train
from .digits import compressed, opened, trained
from .tables import each, spread, table

SHAPES = tuple((width, depth) for width in (16, 24) for depth in (3, 6, 9))
PROMISE = 0.02


def report(seeds: Sequence[int]) -> Iterator[str]:
    found = {shape: [_one(seed, *shape) for seed in seeds] for shape in SHAPES}
    ranked = sorted(found.items(), key=lambda item: sum(one[2] for one in item[1]))
    rows = []
    for (width, depth), ones in ranked:
        accuracies, counts, shares, savings = zip(*ones, strict=True)
        rows.append(
            (
                f"{depth} blocks, width {width}",
                spread([100 * value for value in accuracies]),
                spread(counts, 1),
                spread(shares),
                spread([100 * value for value in savings], 0),
            )
        )
    yield from table(("network", "accuracy, %", "MSRS", "MSRS per pair", "FLOPs saved, %"), rows)
    for at, name in ((2, "MSRS per pair"), (1, "MSRS")):
        told = []
        for seed in range(len(seeds)):
            said = [ones[seed][at] for _, ones in ranked]
            saved = [ones[seed][3] for _, ones in ranked]
            told.append(float(spearmanr(said, saved).statistic))
        yield f"Spearman of {name} and FLOPs saved, seed by seed: {each(told)}"
    yield ""


def _one(seed: int, width: int, depth: int) -> tuple[float, float, float, float]:
    model = trained(seed, width, depth)
    _, _, images, labels = train.split(seed)
    with opened(model, seed) as task:
        (stream,) = similarity(task, lay_out(task))
        _, saved = compressed(task, PROMISE)
    return train.accuracy(model, images, labels), stream.msrs, stream.msrs_per_pair, saved
