"""Post-dominators of an acyclic graph, found in one sweep from the sink backwards.

A vertex is hung below the meeting point of its successors in the tree made so far. Meeting points
are found in O(log n) by the jump pointers of Myers (An applicative random-access stack, 1983):
each vertex knows its parent and one ancestor further up, chosen by depth alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import reduce
from typing import Generic, TypeVar

Vertex = TypeVar("Vertex", bound=Hashable)


class Tree(Generic[Vertex]):
    """A tree that grows from `root`; the parent of a vertex is its immediate post-dominator."""

    def __init__(self, root: Vertex) -> None:
        self._parent = {root: root}
        self._jump = {root: root}
        self._depth = {root: 0}

    def hang(self, vertex: Vertex, successors: Iterable[Vertex]) -> None:
        """Add a vertex all of whose successors (at least one) are in the tree."""
        parent = reduce(self._meet, successors)
        jump = self._jump[parent]
        # two equal jumps in a row are followed by one of their joint length
        far = self._depth[parent] - self._depth[jump]
        is_even = far == self._depth[jump] - self._depth[self._jump[jump]]
        self._parent[vertex] = parent
        self._jump[vertex] = self._jump[jump] if is_even else parent
        self._depth[vertex] = self._depth[parent] + 1

    def parent(self, vertex: Vertex) -> Vertex:
        """The next vertex that every path from `vertex` to the root runs through."""
        return self._parent[vertex]

    def _meet(self, a: Vertex, b: Vertex) -> Vertex:
        if self._depth[a] < self._depth[b]:
            a, b = b, a
        while self._depth[a] > self._depth[b]:
            jump = self._jump[a]
            a = jump if self._depth[jump] >= self._depth[b] else self._parent[a]
        while a != b:  # vertices of one depth jump equally far
            is_far = self._jump[a] != self._jump[b]
            a, b = (self._jump[a], self._jump[b]) if is_far else (self._parent[a], self._parent[b])
        return a
