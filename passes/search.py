"""Search: which surrogates to make together, judged by what they do to the model's output.

Single surrogates are probed, the best sets of them composed, and these fitted front to back and
measured on the select split, a few in one walk: first some that lie apart, then those between what
keeps the promise and what breaks it, then neighbours of the best, while any is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from .budget import ENOUGH_CHANCE, Budget
from .compose import Label, compose
from .probe import Option, Probe
from .rating import Metric
from .recipe import Healing, Recipe
from .surrogates import Wish
from .trial import Trial, Trials, tempered

EMPHASES = (1.0, 30.0)
"""Weights to try for rows that alone are read in the end."""

WIDTH = 3
"""How many sets are fitted in one walk."""

ROUNDS = 3
"""How many walks look for the best composed set, and how many at most for better neighbours."""

BRACKET = (1 / 4, 1 / 2, 1.0)
"""Sets expected to do so much of the harm that is allowed are fitted first."""

SPREAD = (1 / 8, 1 / 4, 1 / 2)
"""Where among all sets others lie that are fitted first, where those are too few."""

CLOSE = 0.02
"""What share of the time a set must save beyond one that keeps the promise to be worth a walk."""

CLEARLY = 0.95
"""Share of the damage below which lighter row weights are better."""

DEPTH = 3
"""How many sets of equal gain are kept where a target must be reached."""

MARGIN = 0.03
"""What share of the time a plan must save beyond the speed-up asked for: costs are measured too."""


class Search:
    """One search; what it fits and measures are trials."""

    def __init__(
        self,
        trials: Trials,
        budget: Budget,
        margin: float = MARGIN,
        rank_by: Metric | None = None,
    ) -> None:
        self.trials, self.budget, self.margin, self.rank_by = trials, budget, margin, rank_by
        self.task, self.costs, self.forms = trials.task, trials.costs, trials.forms
        self.options: tuple[Option, ...] = ()
        self._damages: dict[Wish, float] = {}
        self._found: list[Trial] = []
        self._tried: set[frozenset[Wish]] = set()
        picked = any(stop.picked for stop in trials.walk.stops)
        self._emphases = EMPHASES if picked else EMPHASES[:1]

    def run(self, options: Sequence[Option] = ()) -> list[Trial]:
        """Probe, unless `options` are known, then compose, fit and improve."""
        if not options:
            probe = self.probe()
            options = probe.options()
            self.trials.refused += probe.refused
        self.options = tuple(options)
        self._damages = {option.wish: option.damage for option in self.options}
        labels = compose(self._damages, self._gains, DEPTH if self.budget.has_target else 1)
        if self.budget.has_target:
            labels = [label for label in labels if self._reaches(label)] or labels[-1:]
        if not labels:
            return []
        if self.budget.has_target:
            self._fit_all(label.wishes for label in labels[:WIDTH])
        else:
            self._narrow_down(sorted(labels, key=lambda label: label.gains[0]))
        self._improve()
        return self._found

    def probe(self) -> Probe:
        walk, layout, emphasis = self.trials.walk, self.trials.layout, self._emphases[-1]
        return Probe(layout, walk, self.forms, self.costs, emphasis, self.rank_by)

    def _gains(self, wish: Wish) -> tuple[float, ...]:
        """What the budget counts: time saved where it counts nothing else."""
        gains = []
        if self.budget.remove is not None:
            gains.append(wish.span.blocks)
        if self.budget.max_size_bytes is not None:
            gains.append(float(self._saved_bytes(wish)))
        if self.budget.speedup is not None or not gains:
            gains.append(self.costs.saved_ms(wish))
        return tuple(gains)

    def _saved_bytes(self, wish: Wish) -> int:
        item = 2 if wish.span.dtype in ("float16", "bfloat16") else 4
        removed = self.task.plain.graph.parameters(wish.span.removed)
        return item * (removed - self.forms.stored(wish))

    def _reaches(self, label: Label) -> bool:
        budget, least = self.budget, []
        if budget.remove is not None:
            least.append(budget.remove - 1e-9)
        if budget.max_size_bytes is not None:
            least.append(float(self.task.model.size_bytes - budget.max_size_bytes))
        if budget.speedup is not None:
            least.append((1 - 1 / budget.speedup + self.margin) * self.costs.model_ms)
        return all(gain >= low for gain, low in zip(label.gains, least, strict=True))

    def _narrow_down(self, labels: Sequence[Label]) -> None:
        """Fit sets that should lie about where the promise breaks, then ever closer to there."""
        low, high = -1, len(labels)
        places = first_places(labels, self.options, self.budget.max_drop or 0.0)
        for _ in range(ROUNDS):
            self._fit_all(labels[at].wishes for at in places)
            found = {trial.recipe.wishes: trial for trial in self._tempered()}
            done = {at: found.get(_ordered(labels[at].wishes)) for at in places}
            good = [at for at, trial in done.items() if trial and self._is_good(trial)]
            low = max([low, *good])
            high = min([at for at in places if at > low], default=high)
            inner = [low + round((high - low) * part / (WIDTH + 1)) for part in range(1, WIDTH + 1)]
            places = sorted({at for at in inner if low < at < high})
            saved = 0.0 if low < 0 else labels[low].gains[0]
            if not places or labels[places[-1]].gains[0] < saved + CLOSE * self.costs.model_ms:
                break

    def _is_good(self, trial: Trial) -> bool:
        return self.budget.allows(trial.forecast, ENOUGH_CHANCE)

    def _improve(self) -> None:
        """Fit neighbours of the best set until none of them is better."""
        if not self._found:
            return
        best = self._best()
        unrepaired = [replace(best.recipe, healing=replace(best.recipe.healing, refit=None))]
        for _ in range(ROUNDS):
            fresh: list[frozenset[Wish]] = []
            for wishes in self._neighbours(best):
                if frozenset(wishes) not in self._tried and frozenset(wishes) not in fresh:
                    fresh.append(frozenset(wishes))
                if len(fresh) == WIDTH:
                    break
            self._fit_all(map(_ordered, fresh), unrepaired)
            found = self._best()
            if found.recipe is best.recipe or not fresh:
                return
            best, unrepaired = found, []

    def _best(self) -> Trial:
        """The trial to go on from: the one that would be chosen now, else the nearest."""
        found = self._tempered()
        ranked = self.budget.ranked([trial for trial in found if self._is_good(trial)])
        return ranked[0] if ranked else self.budget.nearest(found)[0]

    def _tempered(self) -> list[Trial]:
        return tempered(self.task, self._found, self.budget.max_drop)

    def _neighbours(self, trial: Trial) -> Iterator[tuple[Wish, ...]]:
        """Sets like this one: richer forms, then one surrogate added, dropped or swapped.

        Without a target those that save more time come, by what they are expected to damage for
        it; with one, those that still reach it, by what they are expected to damage.
        """
        wishes = trial.recipe.wishes
        richer = tuple(replace(w, form=self.forms.richer(w.span, w.form)) for w in wishes)
        if richer != wishes:
            yield richer
        moves: list[tuple[float, tuple[Wish, ...]]] = []
        now = self._label(wishes)
        for option in self.options:
            kept = tuple(wish for wish in wishes if not wish.span.touches(option.wish.span))
            moves.append((0.0, (*kept, option.wish)))
        moves += [(0.0, tuple(w for w in wishes if w != gone)) for gone in wishes if wishes[1:]]
        ranked = []
        for _, changed in moves:
            label = self._label(changed)
            if self.budget.has_target:
                if self._reaches(label):
                    ranked.append((label.damage, changed))
            elif label.gains[0] > now.gains[0] * (1 + 1e-6):
                ranked.append(
                    ((label.damage - now.damage) / (label.gains[0] - now.gains[0]), changed)
                )
        ranked.sort(key=lambda move: move[0])
        yield from (changed for _, changed in ranked)

    def _label(self, wishes: Sequence[Wish]) -> Label:
        plain = [self._damages.get(wish) for wish in wishes]
        damages = [
            damage if damage is not None else self._damages_of(wish)
            for wish, damage in zip(wishes, plain, strict=True)
        ]
        gains = [sum(gain) for gain in zip(*map(self._gains, wishes), strict=True)]
        return Label(tuple(wishes), sum(damages), tuple(gains))

    def _damages_of(self, wish: Wish) -> float:
        """What a richer form is expected to do: as the plain one of its span."""
        alike = [d for other, d in self._damages.items() if other.span == wish.span]
        return min(alike, default=0.0)

    def _fit_all(self, sets: Iterable[Iterable[Wish]], others: Sequence[Recipe] = ()) -> None:
        """Fit sets, and other recipes, in one walk; the first walk also settles the row weights."""
        chosen = list(map(_ordered, sets))
        self._tried |= set(map(frozenset, chosen))
        *lighter, weight = self._emphases
        recipes = [Recipe(wishes, Healing(weight, weight)) for wishes in chosen]
        rivals = [Recipe(chosen[0], Healing(other, other)) for other in lighter]
        trials = self.trials.fit([*recipes, *rivals, *others])
        if rivals:
            damages = dict.fromkeys([recipes[0], *rivals], math.inf)
            damages |= {trial.recipe: trial.damage for trial in trials}
            best = min(rivals, key=damages.__getitem__)
            is_clear = damages[best] < CLEARLY * damages[recipes[0]]
            self._emphases = (best.healing.emphasis if is_clear else weight,)
        self._found += trials


def first_places(labels: Sequence[Label], options: Sequence[Option], allowed: float) -> list[int]:
    """Which of the sets, least gain first, to fit at first: those that bracket the harm allowed.

    Single surrogates told how much harm goes with a damage; where too few sets lie there, others
    are spread over all.
    """
    seen = [(option.harm, option.damage) for option in options if option.harm is not None]
    damage = sum(damage for _, damage in seen)
    slope = sum(harm for harm, _ in seen) / damage if damage > 0 else 0.0
    foretold = np.maximum.accumulate([slope * label.damage for label in labels])
    bracket = [int(np.searchsorted(foretold, share * allowed)) for share in BRACKET]
    spread = [round((len(labels) + 1) * share) - 1 for share in SPREAD]
    places = dict.fromkeys(max(0, min(at, len(labels) - 1)) for at in [*bracket, *spread])
    return sorted(list(places)[:WIDTH])


def _ordered(wishes: Iterable[Wish]) -> tuple[Wish, ...]:
    return tuple(sorted(wishes, key=_place))


def _place(wish: Wish) -> tuple[str, int]:
    return wish.span.stream, wish.span.start
