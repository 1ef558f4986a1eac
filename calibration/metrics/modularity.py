"""Modularity of the graph of nearest samples, layer by layer: how well features sort the classes.

    Q = 1/(2W) sum_ij (a_ij - s_i s_j / (2W)) [c_i = c_j],   s_i = sum_j a_ij,   2W = sum_ij a_ij

A sample is a node, tied to its k most similar others with their cosine as weight, a = (A + A') / 2;
c_i is the sample's class. Range [-1/2, 1); higher means that neighbours are of one class.

A layer that does not raise Q is redundant: dQ = Q_l - Q_(l-1) near 0 (a plateau) or negative.
Published with k = 3, the mean of 5 batches of 500 samples, and blocks kept where dQ >= 0.03. The
first block of a stage is needed for its shapes, whatever its dQ. Classes are labels of the fit
split, or, without labels, the original model's own top-1.

An edge of negative cosine counts as absent: dissimilar samples are no neighbours, and Q has no
meaning for weights below 0. After a ReLU there are none.
Sources: Newman, PRE 70 (2004), for Q; arXiv 2111.12485 for graphs of layers and the rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...ir.errors import BadInput
from .cosine import Floats, row_norms

Array = NDArray[np.float64]

NEIGHBOURS = 3
LEAST_GAIN = 0.03
SMALLEST_NORM = 1e-8
DECIMALS = 12
"""Of a cosine that count: rounding alone makes no sample nearer than another."""


def neighbour_graph(features: Floats, k: int = NEIGHBOURS) -> Array:
    """Weights a (n, n), symmetric with zeros on the diagonal, of features (n, ...), flattened.

    The earlier of equally similar samples is the nearer neighbour.
    """
    n = len(features)
    if not 1 <= k < n:
        raise BadInput(f"{n} samples have no {k} neighbours each: give more samples or a smaller k")
    rows = features.reshape(n, -1).astype(np.float64)
    rows = rows / np.maximum(row_norms(rows), SMALLEST_NORM)[:, None]
    cosines = (rows @ rows.T).round(DECIMALS)
    if not np.isfinite(cosines).all():
        raise BadInput("features hold NaN or infinity: no nearest samples can be told")
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    edges = np.zeros((n, n))
    found = np.take_along_axis(cosines, nearest, axis=1)
    np.put_along_axis(edges, nearest, np.maximum(found, 0.0), axis=1)
    return (edges + edges.T) / 2


def modularity(weights: Array, classes: ArrayLike) -> float:
    """Q of a symmetric graph (n, n) and the classes (n,) of its nodes; 0.0 without any edge."""
    weights, classes = np.asarray(weights, np.float64), np.asarray(classes)
    n = len(weights)
    if weights.shape != (n, n) or classes.shape != (n,):
        raise BadInput(
            f"a graph of shape {weights.shape} and classes of shape {classes.shape} do not fit: "
            "give one class per sample"
        )
    degrees, total = weights.sum(axis=1), float(weights.sum())
    if total == 0.0:
        return 0.0
    # Class by class: the sum over pairs of one class is a block of a and a square of degrees
    _, member = np.unique(classes, return_inverse=True)
    inside = float(weights[member[:, None] == member[None, :]].sum()) / total
    shares = np.bincount(member, degrees) / total
    return inside - float(shares @ shares)


def modularity_curve(
    layers: Sequence[Floats], classes: ArrayLike, k: int = NEIGHBOURS
) -> NDArray[np.float64]:
    """Q of every layer's features (n, ...) on one batch: (L,). Average the curves of batches."""
    return np.array([modularity(neighbour_graph(layer, k), classes) for layer in layers])


def gains(curve: ArrayLike) -> Array:
    """dQ: what each layer but the first adds to Q, (L - 1,)."""
    return np.diff(np.asarray(curve, np.float64))


def plateaus(curve: ArrayLike, threshold: float = LEAST_GAIN) -> tuple[int, ...]:
    """Layers l with Q_l - Q_(l-1) < threshold: those to drop. The first layer has no gain to lack.

    All gains are those of the given curve: what a drop does to the layers after it is not foreseen.
    """
    return tuple(int(layer) + 1 for layer in np.flatnonzero(gains(curve) < threshold))
