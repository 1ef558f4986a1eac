"""Normal equations: all that least squares needs of columns and a target, gathered by batches.

Rows at emphasised positions are gathered apart from the others, so that every emphasis can be had
from one pass over the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from .moments import Array, Centred, CoMoment, Moments

Floats = NDArray[np.floating]


class Equations:
    """Co-moments of columns (rows, p) with themselves and with named targets (rows, d).

    A monoid by `merged`. The targets share the columns' own co-moment.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.targets = tuple(targets)
        self._groups: tuple[dict[str, CoMoment], dict[str, CoMoment]] = ({}, {})

    def add(
        self,
        columns: Floats,
        targets: Sequence[Floats],
        weights: Array | None = None,
        picked: NDArray[np.bool_] | None = None,
    ) -> None:
        """Take one batch: weights (rows,), 0 for padding; `picked` (rows,): emphasised rows."""
        for group, kept in zip(self._groups, _parts(picked), strict=True):
            if kept is None:
                continue
            chosen = None if weights is None else weights[kept]
            x = Centred.of(columns[kept], chosen)
            _absorb(group, "", CoMoment.of(x, x))
            for name, target in zip(self.targets, targets, strict=True):
                y = Centred.of(target[kept], chosen)
                _absorb(group, f"xy {name}", CoMoment.of(x, y))
                _absorb(group, f"yy {name}", CoMoment.of(y, y))

    def merged(self, other: Equations) -> Equations:
        """The equations of both sets of rows together; the targets must be the same."""
        if self.targets != other.targets:
            raise ValueError("equations of different targets cannot be merged")
        both = Equations(self.targets)
        for mine, first, second in zip(both._groups, self._groups, other._groups, strict=True):
            for source in (first, second):
                for key, value in source.items():
                    _absorb(mine, key, value)
        return both

    def moments(self, target: str, emphasis: float = 1.0) -> Moments:
        """Moments of all columns and a target, each emphasised row counting `emphasis` times.

        Raises BadInput where the mask hides every row.
        """
        xx, xy, yy = (self._total(key, emphasis) for key in ("", f"xy {target}", f"yy {target}"))
        return Moments.of(xx, xy, yy)

    def _total(self, key: str, emphasis: float) -> CoMoment:
        others, picked = (group.get(key) for group in self._groups)
        if picked is not None:
            picked = picked.scaled(emphasis)
        total = others or picked
        if total is None or total.weight == 0.0:
            raise BadInput("the mask hides every row; check the mask in the data")
        if others is not None and picked is not None:
            total = others.copy()
            total.absorb(picked)
        return total


def _parts(
    picked: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.bool_] | slice | None, NDArray[np.bool_] | None]:
    """Which rows are not emphasised, and which are."""
    if picked is None or not picked.any():
        return slice(None), None
    return (None if picked.all() else ~picked), picked


def _absorb(group: dict[str, CoMoment], key: str, part: CoMoment) -> None:
    if key in group:
        group[key].absorb(part)
    else:
        group[key] = part.copy()
