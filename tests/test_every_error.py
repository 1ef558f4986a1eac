"""Every error that the sources can raise is raised by some test: `make errors` tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockfold.ir.errors import BadInput
from blockfold.tests.raised import RAISED, Site, sites, sites_of

WHY = "write a test that provokes it, and checks that the line says what, where and what to do"


def test_every_error_was_raised(request: pytest.FixtureRequest) -> None:
    if not request.config.option.every_error:
        pytest.skip("asked for with --every-error, of the whole suite alone")
    missed = [str(site) for site in sites() if not site.was_raised]
    assert not missed, f"{WHY}:\n" + "\n".join(missed)


SOURCE = """
if x:
    raise BadInput(
        f"{x}: bad"
    )
y = NotMet(why())
NotMet
"""


def test_all_errors_are_found_in_a_source() -> None:
    found = sites_of(SOURCE, "a.py")
    assert sorted((site.first, site.last) for site in found) == [(3, 5), (6, 6)]
    assert len(sites()) > 150


def test_an_error_that_was_made_is_noted() -> None:
    here = Site(str(Path(__file__).resolve()), 0, 0, "")
    before = len(RAISED)
    BadInput("made, not raised")
    assert len(RAISED) == before + 1
    lines = [line for file, line in RAISED if file == here.file]
    assert Site(here.file, lines[0], lines[0], "").was_raised
    assert not here.was_raised
