"""What is checked of every refusal is itself checked; the refusals are in test_errors_*.py."""

from __future__ import annotations

import pytest

from blockfold.tests.tools.harness import (
    CommandLine,
    Ran,
    untouched,
)
from blockfold.tests.tools.place import (
    Place,
    assert_one_line,
)


def test_the_same_without_the_fault_succeeds(place: Place, command: CommandLine) -> None:
    """Else the cases above could fail for some reason that all of them share."""
    with pytest.raises(AssertionError, match=r"came or went"), untouched(place.folder):
        assert command(*place.optimize()).code == 0
    assert command(*place.apply(place.plan())).code == 0


def test_a_line_is_checked_for_its_words() -> None:
    ran = Ran(2, "", "blockfold: x.npz: holds nothing\n")
    assert assert_one_line(ran, 2, ["nothing"]) == "x.npz: holds nothing"
    for bad, code, words in [
        (ran, 1, ["nothing"]),
        (ran, 2, ["something"]),
        (Ran(2, "", "x.npz: holds nothing\n"), 2, []),
        (Ran(2, "", ran.err * 2), 2, []),
        (Ran(2, "", ""), 2, []),
    ]:
        with pytest.raises((AssertionError, ValueError)):
            assert_one_line(bad, code, words)
