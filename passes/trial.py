"""Trials: sets of replacements that were made together and measured on the select split."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.quality import Scores
from ..ir.spans import Span
from .fit import Fitted
from .replacement import Replacement
from .score import Redundancy
from .verify import Forecast


@dataclass(frozen=True)
class Choice:
    """A replacement and what it rests on."""

    replacement: Replacement
    redundancy: Redundancy

    @property
    def span(self) -> Span:
        return self.replacement.span


@dataclass(frozen=True)
class Trial:
    """Replacements made together and measured on the select split.

    `fitted`: solved front to back, with what they feed repaired; else each by itself. `fresh` are
    the scores on the fit split, where they are known already.
    """

    choices: tuple[Choice, ...]
    scores: Scores
    forecast: Forecast
    saved_ms: float
    speedup: float
    size_bytes: int
    fitted: Fitted | None = None
    fresh: Scores | None = None

    @property
    def blocks(self) -> float:
        return sum(choice.span.blocks for choice in self.choices)

    @property
    def replacements(self) -> tuple[Replacement, ...]:
        if self.fitted is not None:
            return self.fitted.replacements
        return tuple(choice.replacement for choice in self.choices)
