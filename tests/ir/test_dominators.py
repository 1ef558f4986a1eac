"""The tree of post-dominators against their definition, and that its depth costs little."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from blockfold.ir.dominators import Tree

Successors = Mapping[int, Sequence[int]]


def random_successors(seed: int) -> dict[int, list[int]]:
    """A graph that runs down to 0: sparse with bridges, dense, a ladder, with repeated edges."""
    rng = random.Random(seed)
    count, reach = rng.randint(2, 40), rng.choice([1, 2, 3, 5, 40])
    most = rng.choice([1, 2, 2, 4])
    return {
        vertex: rng.choices(range(max(0, vertex - reach), vertex), k=rng.randint(1, most))
        for vertex in range(1, count)
    }


def reaches_root(start: int, successors: Successors, without: int) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        vertex = waiting.pop()
        if vertex == 0:
            return True
        fresh = set(successors[vertex]) - seen - {without}
        seen |= fresh
        waiting += fresh
    return False


def true_parent(vertex: int, successors: Successors) -> int:
    """By the definition: of all on whose removal no path is left, the one all others lie behind."""
    strict = [0]
    strict += [v for v in range(1, vertex) if not reaches_root(vertex, successors, without=v)]
    (nearest,) = (v for v in strict if all(v == o or o in behind(v, successors) for o in strict))
    return nearest


def behind(vertex: int, successors: Successors) -> set[int]:
    found, waiting = {0}, [vertex]
    while waiting:
        for following in successors.get(waiting.pop(), ()):
            if following not in found:
                found.add(following)
                waiting.append(following)
    return found


def grown(successors: Successors) -> Tree[int]:
    tree = Tree(0)
    for vertex in sorted(successors):
        tree.hang(vertex, successors[vertex])
    return tree


@pytest.mark.parametrize("seed", range(150))
def test_a_parent_is_the_immediate_post_dominator(seed: int) -> None:
    successors = random_successors(seed)
    tree = grown(successors)
    wanted = {vertex: true_parent(vertex, successors) for vertex in successors}
    assert {vertex: tree.parent(vertex) for vertex in successors} == wanted


def test_the_random_graphs_have_parents_of_every_kind() -> None:
    """Direct successors, far vertices and the root all occur: no constant would pass."""
    direct = far = root = 0
    for seed in range(150):
        successors = random_successors(seed)
        tree = grown(successors)
        for vertex, following in successors.items():
            parent = tree.parent(vertex)
            direct += parent in following
            far += parent not in following and parent != 0
            root += parent == 0
    assert min(direct, far, root) > 100


def test_the_root_is_its_own_parent_and_vertices_may_be_anything_hashable() -> None:
    tree = Tree[str | int]("sink")
    tree.hang(7, ["sink"])
    tree.hang("a", iter([7]))
    tree.hang("b", ["a", "sink"])
    assert tree.parent("sink") == "sink"
    assert (tree.parent(7), tree.parent("a"), tree.parent("b")) == ("sink", 7, "sink")


@pytest.mark.parametrize("successors", [["nowhere"], ["root", "nowhere"]])
def test_a_successor_that_is_not_in_the_tree_is_an_error(successors: list[str]) -> None:
    tree = Tree("root")
    with pytest.raises(KeyError):
        tree.hang("a", successors)


class Counted(int):
    """A number that counts how often it is looked up."""

    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return super().__hash__()


DEPTH = 10_000


def looks_for(successors: Sequence[int]) -> tuple[int, int]:
    """The parent of a vertex on a chain of DEPTH vertices, and the look-ups its finding took."""
    chain = [Counted(i) for i in range(DEPTH)]
    tree = Tree(chain[0])
    for vertex in chain[1:]:
        tree.hang(vertex, [chain[vertex - 1]])
    Counted.looks = 0
    last = Counted(DEPTH)
    tree.hang(last, [chain[i] for i in successors])
    looks = Counted.looks
    return int(tree.parent(last)), looks


@pytest.mark.parametrize(
    ("successors", "parent"),
    [
        ([DEPTH - 1], DEPTH - 1),
        ([DEPTH - 1, 1], 1),
        ([DEPTH - 1, 4_321], 4_321),
        ([9_998, 9_999, 6_000, 7_777], 6_000),
        ([0, DEPTH - 1], 0),
    ],
)
def test_a_meeting_point_far_down_a_chain_is_found_in_few_steps(
    successors: list[int], parent: int
) -> None:
    found, looks = looks_for(successors)
    assert found == parent
    assert looks < 400


def test_two_long_branches_meet_in_few_steps() -> None:
    """Both are walked at once, and no call is nested in another."""
    tree = Tree(Counted(0))
    left, right = ([Counted(2 * i + side) for i in range(1, DEPTH)] for side in (0, 1))
    for branch in (left, right):
        before = Counted(0)
        for vertex in branch:
            tree.hang(vertex, [before])
            before = vertex
    Counted.looks = 0
    last = Counted(2 * DEPTH + 2)
    tree.hang(last, [left[-1], right[-2]])
    assert Counted.looks < 400
    assert tree.parent(last) == 0
