"""Budgets: what the result must reach, and what it may cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..calibration.quality import Scores
from ..ir.errors import BadInput
from .trial import Trial
from .verify import Forecast

DEFAULT_MAX_DROP = 0.01
WORTH_CONFIRMING = 0.25
ENOUGH_CHANCE = 0.9
LEAST_CHANCE = 0.5
"""How likely a plan must keep the promise on fresh samples: to be looked at again; to be taken
before slower ones are looked at; to be taken at all.
"""


Confirmed = tuple[Trial, Forecast] | None


@dataclass(frozen=True)
class Budget:
    """max_drop: quality that may be lost, 0.01 for one point. speedup: latency ratio to reach.
    remove: blocks to replace. max_size_bytes: size of the file to get below.

    max_drop alone: the fastest plan within it. Others: the least damage that reaches them all.
    """

    max_drop: float | None = None
    speedup: float | None = None
    remove: float | None = None
    max_size_bytes: int | None = None

    @classmethod
    def of(
        cls,
        max_drop: float | None = None,
        speedup: float | None = None,
        remove: float | None = None,
        max_size_bytes: int | None = None,
    ) -> Budget:
        """A checked budget; without any wish, a drop of one point. Raises BadInput."""
        if max_drop is not None and not 0 < max_drop < 1:
            raise BadInput(f"--max-drop {max_drop:g}: not between 0 and 1; write 1% or 0.01")
        if speedup is not None and not speedup > 1:
            raise BadInput(f"--speedup {speedup:g}: must be above 1, as in --speedup 1.3")
        if remove is not None and not remove > 0:
            raise BadInput(f"--remove {remove:g}: must be a positive number of blocks")
        if max_size_bytes is not None and max_size_bytes <= 0:
            raise BadInput(f"--max-size {max_size_bytes}: must be a positive number of bytes")
        if max_drop is None and speedup is None and remove is None and max_size_bytes is None:
            max_drop = DEFAULT_MAX_DROP
        return cls(max_drop, speedup, remove, max_size_bytes)

    @property
    def has_target(self) -> bool:
        """Whether something must be reached, beside quality that must be kept."""
        return not (self.speedup is self.remove is self.max_size_bytes is None)

    def allows(self, forecast: Forecast, chance: float) -> bool:
        """Whether a plan so forecast keeps the promise with at least that chance."""
        return self.max_drop is None or forecast.chance >= chance

    def reached(self, trial: Trial) -> bool:
        """Whether every target is reached; speed as expected from measured costs."""
        return (
            (self.speedup is None or trial.speedup >= self.speedup)
            and (self.remove is None or trial.blocks >= self.remove - 1e-9)
            and (self.max_size_bytes is None or trial.size_bytes <= self.max_size_bytes)
        )

    def confirmed(
        self, trials: Sequence[Trial], foretell: Callable[[Scores], Forecast]
    ) -> Confirmed:
        """The first of the ranked trials that the fit split confirms, else the likeliest.

        The best of many on select is partly the luckiest. The fit split gave the maps but chose
        nothing, so it must say so too, by itself and together with select; the worst forecast
        counts.
        """
        found: list[tuple[Trial, Forecast]] = []
        for trial in self.ranked(trials):
            beside = map(foretell, (trial.fresh, trial.scores.joined(trial.fresh)))
            expected = min((trial.forecast, *beside), key=lambda forecast: forecast.chance)
            found.append((trial, expected))
            if self.allows(expected, ENOUGH_CHANCE):
                return trial, expected
        likely = [pair for pair in found if self.allows(pair[1], LEAST_CHANCE)]
        return max(likely, key=lambda pair: pair[1].chance, default=None)

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that may keep the promise and reach the targets, the one to go with first.

        After the first come only trials that are likelier to keep the promise than all before, or
        very likely to.
        """
        fit = [
            trial
            for trial in trials
            if self.allows(trial.forecast, WORTH_CONFIRMING) and self.reached(trial)
        ]
        if self.has_target:
            fit.sort(key=lambda trial: (trial.damage, -trial.saved_ms))
        else:
            fit.sort(key=lambda trial: (-trial.saved_ms, trial.forecast.upper))
        front: list[Trial] = []
        for trial in fit:
            chance = trial.forecast.chance
            if chance >= ENOUGH_CHANCE or all(chance > t.forecast.chance for t in front):
                front.append(trial)
        return front

    def nearest(self, trials: Sequence[Trial]) -> list[Trial]:
        """All trials, first those that come nearest to what was asked for."""

        def missing(trial: Trial) -> float:
            if self.reached(trial):
                return 0.0
            far = [
                (self.speedup or 0.0) / trial.speedup,
                (self.remove or 0.0) / max(trial.blocks, 1e-9),
            ]
            if self.max_size_bytes is not None:
                far.append(trial.size_bytes / self.max_size_bytes)
            return max(far)

        return sorted(trials, key=lambda trial: (missing(trial), trial.forecast.upper))

    def __str__(self) -> str:
        parts = []
        if self.max_drop is not None:
            parts.append(f"--max-drop {self.max_drop:.3g}")
        if self.speedup is not None:
            parts.append(f"--speedup {self.speedup:g}")
        if self.remove is not None:
            parts.append(f"--remove {self.remove:g}")
        if self.max_size_bytes is not None:
            parts.append(f"--max-size {self.max_size_bytes}")
        return " ".join(parts)
