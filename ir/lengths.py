"""Lengths of axes, and which of them must be equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Length:
    """The length of one axis of a value, a graph input where it could be traced to one."""

    value: str
    axis: int


Dim = int | Length
Dims = tuple[Dim, ...]


class Equalities:
    """Lengths that must be equal for the graph to run, in classes.

    One stands for all of a class: a number where one is known, else the length of the value that
    has the first of the `places`.
    """

    def __init__(self, places: Mapping[str, int]) -> None:
        self._places = places
        self._stand_ins: dict[Length, Dim] = {}
        self._classes: dict[Dim, list[Length]] = {}
        self._broadcasts: dict[frozenset[Dim], Length] = {}
        self._parts: dict[Dim, frozenset[Dim]] = {}

    def of(self, dim: Dim) -> Dim:
        """The one that stands for it."""
        while isinstance(dim, Length) and dim in self._stand_ins:
            dim = self._stand_ins[dim]
        return dim

    def alike(self, length: Length) -> list[Length]:
        """All that are equal to it, itself included, by their places."""
        return sorted(self._classes.get(self.of(length), [length]), key=self._place)

    def unite(self, dims: Iterable[Dim]) -> Dim:
        """Note that they are equal; gives the one that stands for all of them."""
        best, *others = sorted({self.of(dim) for dim in dims}, key=self._place)
        if others:
            found = self._classes.setdefault(best, [best] if isinstance(best, Length) else [])
            for dim in others:
                if isinstance(dim, Length):
                    self._stand_ins[dim] = best
                    found += self._classes.pop(dim, [dim])
        return best

    def broadcast(self, dims: Iterable[Dim], made: Length) -> Dim:
        """The length that these give, each equal to it or 1; `made` where they meet at first.

        Whichever of them is 1: the same ones give the same, and so does one of them once more.
        """
        wide = {self.of(dim) for dim in dims} - {1}
        numbers = [dim for dim in wide if isinstance(dim, int)]
        if numbers or len(wide) < 2:
            return next(iter([*numbers, *wide]), 1)
        parts = frozenset[Dim]().union(*(self._parts.get(dim, {dim}) for dim in wide))
        found = self._broadcasts.setdefault(parts, made)
        self._parts[found] = parts
        return self.of(found)

    def _place(self, dim: Dim) -> tuple[int, int]:
        return (-1, dim) if isinstance(dim, int) else (self._places[dim.value], dim.axis)
