"""Promises that the last measurement breaks: exit 1, one line with the figures, nothing written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from blockfold.passes import optimize as main_job
from blockfold.passes.budget import Budget
from blockfold.passes.plan import read_plan
from blockfold.passes.verify import verify
from blockfold.tests.tools.harness import CommandLine, untouched
from blockfold.tests.tools.place import NOT_MET, Place, assert_one_line
from blockfold.tools import api


def broken(*given: Any) -> Any:
    """A verdict with a limit above any promise."""
    verdict = verify(*given)
    return replace(verdict, bound=replace(verdict.bound, upper=0.5))


def test_a_certificate_that_fails(
    place: Place, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main_job, "verify", broken)
    with untouched(place.folder):
        ran = command(*place.optimize("--no-report"))
    words = ["not certified", "50.00 points", "more than the 5.00 points allowed", "give more"]
    assert_one_line(ran, NOT_MET, words)


def test_a_replayed_plan_whose_certificate_fails(
    place: Place, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "run_verify", broken)
    plan = place.plan()
    with untouched(place.folder):
        ran = command(*place.apply(plan, "--data", place.data, "--max-drop", "5%"))
    assert_one_line(ran, NOT_MET, ["not certified", "50.00 points", "give more samples"])


def test_a_speed_that_is_not_reached_in_the_end(place: Place) -> None:
    plan, _ = read_plan(place.small.with_suffix(".plan.json"))
    assert plan.latency is not None
    assert plan.verdict is not None
    slow = plan.model_copy(update={"latency": plan.latency.model_copy(update={"ratio": 1.1})})
    why = main_job._why_not(slow, plan.verdict, Budget.of(speedup=1.2), 1)
    assert why is not None
    assert why.startswith("--speedup 1.2 not reached: the best plan measured 1.100x (")
    assert main_job._why_not(slow, plan.verdict, Budget.of(speedup=1.05), 1) is None


def test_a_model_that_is_neither_faster_nor_smaller(place: Place) -> None:
    plan, _ = read_plan(place.small.with_suffix(".plan.json"))
    assert plan.latency is not None
    assert plan.verdict is not None
    slow = plan.model_copy(update={"latency": plan.latency.model_copy(update={"ratio": 0.9})})
    size_bytes, budget = plan.model.size_bytes, Budget.of(0.05)
    why = main_job._why_not(slow, plan.verdict, budget, size_bytes)
    assert why is not None
    assert why.endswith("neither faster nor smaller; it stays as it is")
    assert main_job._why_not(slow, plan.verdict, budget, size_bytes - 1) is None
