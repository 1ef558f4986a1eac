"""Recipes: which surrogates to make together and how they are solved, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..calibration.tape import Tape
from ..ir.errors import NotMet
from ..ir.spans import Refusal
from .replacement import Replacement
from .surrogates import Wish


@dataclass(frozen=True)
class Healing:
    """How surrogates are solved and what follows them is repaired.

    `emphasis` and `refit` are the weights of rows that alone are read in the end, in surrogates and
    in refits; `refit` None: nothing is refitted. The others are as they were published: without
    `bias` and `ridge` a map is plain least squares about zero, `original` solves it on the
    original's own activations, and `tied` makes a folded operation W0 T, T being what is solved.
    """

    emphasis: float = 1.0
    refit: float | None = 1.0
    bias: bool = True
    ridge: bool = True
    original: bool = False
    tied: bool = False


@dataclass(frozen=True, eq=False)
class Recipe:
    """Wishes to be made together, none touching another, and how what follows is repaired.

    `known`: replacements solved before, by exit: only their numbers are solved again, on all rows.
    """

    wishes: tuple[Wish, ...]
    healing: Healing = Healing()
    known: Mapping[str, Replacement] | None = None


class Pair(NamedTuple):
    """Tapes of one model over both splits."""

    fit: Tape
    select: Tape


@dataclass(frozen=True, eq=False)
class Fitted:
    """Replacements in the order of the graph, refits included, and tapes that hold the output.

    `refusal`: why the recipe cannot be followed in the model's type; the tapes are then empty.
    """

    recipe: Recipe
    replacements: tuple[Replacement, ...]
    tapes: Pair
    refusal: Refusal | None = None

    def require(self) -> None:
        """Raise NotMet where the recipe was refused."""
        if self.refusal is not None:
            raise unfollowed(self.refusal)

    def close(self) -> None:
        """Let go of the outputs."""
        for tape in self.tapes:
            tape.close()


def unfollowed(refusal: Refusal) -> NotMet:
    """What is raised where a recipe must be followed and was refused."""
    return NotMet(f"{refusal.name} cannot be replaced: {refusal.reason}")
