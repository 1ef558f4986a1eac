"""How little rows move between any two layers, against the metrics of one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest

from blockfold.calibration import pairwise
from blockfold.calibration.features import as_rows
from blockfold.calibration.metrics.cosine import row_cosines
from blockfold.calibration.pairwise import Pairwise

TOKENS, WIDTH = 5, 3


def layers(axis: int = -1) -> dict[str, np.ndarray]:
    """Three layers that drift apart, and one of another shape."""
    rng = np.random.default_rng(0)
    shape = (8, TOKENS, WIDTH) if axis == -1 else (8, WIDTH, TOKENS, 1)
    steps = rng.standard_normal((3, *shape)).cumsum(axis=0).astype(np.float32)
    steps[:, 2] = 0.0  # a sample whose rows are all zero
    steps[1:, 3] = 0.0  # and one that a layer sets to zero
    found = {f"h{at}": step for at, step in enumerate(steps)}
    return found | {"wide": rng.standard_normal((8, TOKENS, WIDTH + 1)).astype(np.float32)}


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("most", [1 << 22, 40])
def test_all_pairs_are_as_one_pair_at_a_time(
    axis: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairwise, "MOST_NUMBERS", most)
    values = layers(axis)
    gathered = Pairwise(dict.fromkeys(values, axis) | {"wide": -1})
    for part in (slice(0, 3), slice(3, 8)):
        gathered.add({name: value[part] for name, value in values.items()}, None)
    rows = [as_rows(values[f"h{at}"], axis).astype(np.float64) for at in range(3)]
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            moved = -np.square(y - x).sum(1).mean()
            assert gathered.block_redundancy[i, j] == pytest.approx(moved, abs=1e-12)
            assert gathered.cosine[i, j] == pytest.approx(row_cosines(x, y).mean())
    for matrix in (gathered.block_redundancy, gathered.cosine):
        assert np.isnan(matrix[3, :3]).all()
        assert np.isnan(matrix[:3, 3]).all()


def test_padding_has_no_part() -> None:
    values = {name: value for name, value in layers().items() if name != "wide"}
    mask = np.ones((8, TOKENS))
    mask[:, 3:] = 0
    plain, padded = (Pairwise(dict.fromkeys(values, -1)) for _ in range(2))
    plain.add({name: value[:, :3] for name, value in values.items()}, None)
    for value in values.values():
        value[:, 3:] += np.float32(1e3) * np.random.default_rng(1).standard_normal(WIDTH)
    padded.add(values, mask)
    np.testing.assert_allclose(padded.block_redundancy, plain.block_redundancy, rtol=1e-9)
    np.testing.assert_allclose(padded.cosine, plain.cosine, rtol=1e-9)


def test_a_large_common_part_costs_no_digits() -> None:
    rng = np.random.default_rng(2)
    x = 1e6 + rng.standard_normal((4, TOKENS, WIDTH))
    gathered = Pairwise({"x": -1, "y": -1})
    gathered.add({"x": x, "y": x + 1e-3}, None)
    assert gathered.block_redundancy[0, 1] == pytest.approx(-WIDTH * 1e-6, rel=1e-5)
