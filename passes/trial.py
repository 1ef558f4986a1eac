"""Trials: sets of surrogates that were fitted together and measured on the select split."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.quality import Scores
from .fit import Recipe
from .replacement import Replacement
from .verify import Forecast


@dataclass(frozen=True)
class Trial:
    """A recipe, fitted front to back, and what it came to.

    `scores` are on the select split and `fresh` on the fit split; `damage` is the mean by the
    task's smooth metric on select, `forecast` what the certify split is expected to say.
    """

    recipe: Recipe
    replacements: tuple[Replacement, ...]
    scores: Scores
    fresh: Scores
    damage: float
    forecast: Forecast
    saved_ms: float
    speedup: float
    size_bytes: int

    @property
    def blocks(self) -> float:
        return sum(wish.span.blocks for wish in self.recipe.wishes)
