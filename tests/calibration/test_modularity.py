"""Modularity of nearest-sample graphs: networkx's value, planted classes, the published rule."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blockfold.calibration.metrics.modularity import (
    gains,
    modularity,
    modularity_curve,
    neighbour_graph,
    plateaus,
)
from blockfold.ir.errors import BadInput

Array = NDArray[np.float64]


def theirs(weights: Array, classes: NDArray[np.int64]) -> float:
    graph = networkx.from_numpy_array(weights)
    groups = [set(np.flatnonzero(classes == c).tolist()) for c in np.unique(classes)]
    return float(networkx.community.modularity(graph, groups, resolution=1))


def blobs(spread: float, seed: int = 0) -> tuple[Array, NDArray[np.int64]]:
    """Three classes about axes of their own: apart where the spread is small."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(3), 15)
    return np.eye(3)[classes] + spread * rng.standard_normal((45, 3)), classes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 5))
def test_it_is_that_of_networkx(seed: int, k: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, kinds, 30)
    weights = neighbour_graph(np.abs(rng.standard_normal((30, 8))), k)
    assert modularity(weights, classes) == pytest.approx(theirs(weights, classes), abs=1e-10)


def test_it_is_the_published_sum() -> None:
    features, classes = blobs(0.6)
    a = neighbour_graph(features)
    s, total = a.sum(1), a.sum()
    same = classes[:, None] == classes[None, :]
    expected = ((a - np.outer(s, s) / total) * same).sum() / total
    assert modularity(a, classes) == pytest.approx(expected, abs=1e-12)


def test_every_node_keeps_its_nearest() -> None:
    features = np.random.default_rng(1).standard_normal((12, 2, 3))
    rows = features.reshape(12, 6)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T - 3 * np.eye(12)
    directed = np.zeros((12, 12))
    for i in range(12):
        for j in np.argsort(-cosines[i])[:2]:
            directed[i, j] = max(cosines[i, j], 0.0)
    found = neighbour_graph(features, 2)
    np.testing.assert_allclose(found, (directed + directed.T) / 2, atol=1e-12)
    assert (np.diag(found) == 0).all()


def test_classes_apart_and_mixed() -> None:
    features, classes = blobs(0.05)
    assert modularity(neighbour_graph(features), classes) == pytest.approx(2 / 3, abs=1e-6)
    mixed = np.random.default_rng(2).permutation(classes)
    assert abs(modularity(neighbour_graph(features), mixed)) < 0.15
    assert modularity(neighbour_graph(features), np.zeros(45)) == pytest.approx(0.0, abs=1e-12)


def test_names_of_classes_scales_and_order_change_nothing() -> None:
    features, classes = blobs(0.8)
    expected = modularity(neighbour_graph(features), classes)
    assert modularity(neighbour_graph(7.5 * features), 100 - classes) == pytest.approx(expected)
    named = np.array(["cat", "dog", "eel"])[classes]
    assert modularity(neighbour_graph(features), named) == expected
    order = np.random.default_rng(3).permutation(45)
    shuffled = modularity(neighbour_graph(features[order]), classes[order])
    assert shuffled == pytest.approx(expected, abs=1e-12)


def test_graphs_without_edges_have_0() -> None:
    classes = np.arange(6) % 2
    assert modularity(neighbour_graph(np.zeros((6, 4))), classes) == 0.0
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert modularity(neighbour_graph(opposite, 1), classes[:2]) == 0.0


def test_features_that_never_vary_have_one_value_whatever_their_rounding() -> None:
    rng = np.random.default_rng(3)
    classes = np.arange(60) % 3
    still = np.ones((60, 8)) * rng.standard_normal(8)
    noisy = still * (1 + 1e-8 * rng.standard_normal((60, 8)))
    scaled = 1e3 * still[:, :4]
    curve = modularity_curve([still, noisy, scaled], classes)
    assert np.isfinite(curve).all()
    assert curve[0] == curve[1] == curve[2]


def test_a_curve_rises_where_a_layer_sorts_and_rests_where_it_does_not() -> None:
    layers = [blobs(2.0)[0], blobs(0.4)[0]]
    layers += [2 * layers[1], blobs(0.05)[0], blobs(1.0)[0]]
    curve = modularity_curve(layers, blobs(1.0)[1])
    assert curve.shape == (5,)
    steps = gains(curve)
    assert steps[0] > 0.1 and steps[2] > 0.05 and steps[3] < -0.05
    assert steps[1] == pytest.approx(0.0, abs=1e-12)
    assert plateaus(curve) == (2, 4)


def test_the_rule_keeps_what_gains_the_threshold() -> None:
    curve = [0.0, 0.25, 0.25, 0.5, 0.375, 0.4375]
    assert plateaus(curve, 0.25) == (2, 4, 5)
    assert plateaus(curve, 0.0) == (4,)
    assert plateaus(curve) == (2, 4)
    assert plateaus([0.3]) == ()


def test_what_cannot_be_told() -> None:
    features, classes = blobs(0.5)
    with pytest.raises(BadInput, match="3 samples have no 3 neighbours"):
        neighbour_graph(features[:3])
    with pytest.raises(BadInput, match="one class per sample"):
        modularity(neighbour_graph(features), classes[:-1])
    features[0, 0] = np.nan
    with pytest.raises(BadInput, match="NaN"):
        neighbour_graph(features)
