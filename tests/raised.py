"""Account of the errors that tests provoke, to hold against all those that the sources can raise.

An error is known by the place of its making: the lines of the call `BadInput(...)`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockfold.ir.errors import BlockfoldError

ROOT = Path(__file__).parents[1]
FLOORS = ("ir", "calibration", "passes", "tools")
KINDS = ("BadInput", "Unsupported", "NotMet")

RAISED: set[tuple[str, int]] = set()
"""File and line of every error made since `keep_account`."""


@dataclass(frozen=True)
class Site:
    """Where an error is made."""

    file: str
    first: int
    last: int
    text: str

    @property
    def was_raised(self) -> bool:
        return any((self.file, line) in RAISED for line in range(self.first, self.last + 1))

    def __str__(self) -> str:
        return f"{self.file}:{self.first}: {self.text}"


def sites_of(source: str, file: str) -> Iterator[Site]:
    """The errors that a file can raise."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in KINDS:
                text = " ".join(ast.unparse(node).split())[:90]
                yield Site(file, node.lineno, node.end_lineno or node.lineno, text)


def sites() -> list[Site]:
    """The errors that blockfold can raise."""
    files = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    return [site for file in files for site in sites_of(file.read_text(), str(file))]


def keep_account() -> None:
    """From now on note where errors are made."""

    def noted(error: BlockfoldError, *arguments: object) -> None:
        frame = sys._getframe(1)
        RAISED.add((str(Path(frame.f_code.co_filename).resolve()), frame.f_lineno))
        Exception.__init__(error, *arguments)

    BlockfoldError.__init__ = noted  # type: ignore[method-assign,assignment]
