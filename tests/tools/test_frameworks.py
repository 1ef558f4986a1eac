"""Networks of other frameworks through the main job, where those are installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from blockfold.tools.support.frameworks import CASES, Case, row

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_trained_network_is_optimized(case: Case, tmp_path: Path) -> None:
    missing = [name for name in case.packages if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    name, exporter, _, lost, latency = row(case, tmp_path, 0.03).strip("| ").split(" | ")
    assert name == case.name
    assert exporter.startswith(case.packages[-1])
    assert "at most" in lost
    assert latency.endswith("x")


def test_what_is_not_installed_is_said(tmp_path: Path) -> None:
    case = Case("none", ("numpy", "no_such_framework"), lambda *_: None)
    assert "not tried: no_such_framework not installed" in row(case, tmp_path, 0.03)
