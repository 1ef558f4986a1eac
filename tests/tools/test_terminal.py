"""What a terminal gets beside the tables: refusals counted or told, words completed, no colours."""

from __future__ import annotations

import io

import pytest
from click.shell_completion import ShellComplete
from rich.console import Console

from blockfold.ir.spans import Refusal
from blockfold.tools.cli import cli
from blockfold.tools.tables import show_refusals

REFUSALS = [
    Refusal(1, 2, "blocks.0", "node 'a/b' (Concat) outside it still reads 'x'", "node 'a/b'"),
    Refusal(2, 3, "blocks.1", "node 'c' (Concat) outside it still reads 'y'", "node 'c'"),
    Refusal(3, 4, "blocks.2", "its ends differ in shape: (1, 2) and (1, 3)", "node 'd'"),
    Refusal(0, 1, "stem", "its ends differ in shape: (1, 2) and (1, 3)", "node 's'"),
]


def shown(verbose: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    show_refusals(console, REFUSALS, {"blocks.0", "blocks.1", "blocks.2"}, verbose)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_refusals_are_counted_by_reason() -> None:
    first, second, last = shown(verbose=False)
    assert "2 blocks: node ... (Concat) outside it still reads ..." in first
    assert "1 blocks: its ends differ in shape (-v" in second
    assert last.startswith("1 units outside the blocks")


def test_on_demand_each_is_told_with_its_node() -> None:
    lines = shown(verbose=True)
    assert [refusal.name in line for refusal, line in zip(REFUSALS, lines, strict=False)] == [
        True
    ] * len(REFUSALS)
    assert "reads 'y'; node 'c'" in lines[1]


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["optimize", "--metric"], "a", {"accuracy", "agreement"}),
        (["optimize", "--method"], "rb", {"rba"}),
        (["bench", "--provider"], "cu", {"cuda"}),
        (["inspect"], "mod", {"file"}),
        (["rank", "--data"], "sam", {"file"}),
    ],
)
def test_words_are_completed(words: list[str], begun: str, expected: set[str]) -> None:
    found = ShellComplete(cli, {}, "blockfold", "_X").get_completions(words, begun)
    assert {item.type if item.type != "plain" else item.value for item in found} == expected
