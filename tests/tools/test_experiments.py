"""The experiments' own machinery: their tables, their pruning, and that each runs in small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from blockfold.passes.rating import METRICS
from blockfold.tools.experiments import cost, digits, family, lacoot, rba, shortlist, sparse
from blockfold.tools.experiments.__main__ import EXPERIMENTS, main
from blockfold.tools.experiments.sparse import PRUNED_AT, Pruner
from blockfold.tools.experiments.tables import each, spread, table


def test_a_table_is_markdown() -> None:
    assert [*table(("a", "b"), [("1", "2")])] == ["| a | b |", "| --- | --- |", "| 1 | 2 |", ""]
    assert spread([1.0, 2.0, 3.0]) == "2.00 (1.00)"
    assert each([0.5, -0.25], 1) == "0.5, -0.2"


def test_pruned_weights_are_the_smallest_and_stay_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    dense = [weight.detach().clone() for weight in weights]
    pruner = Pruner(model, 0.75)
    pruner(PRUNED_AT - 0.01)
    assert all(torch.equal(a, b) for a, b in zip(weights, dense, strict=True)), (
        "not before its time"
    )
    pruner(PRUNED_AT)
    zero = torch.cat([weight.flatten() == 0 for weight in weights])
    assert float(zero.float().mean()) == pytest.approx(0.75, abs=0.01)
    sizes = torch.cat([weight.abs().flatten() for weight in dense])
    assert sizes[zero].max() < sizes[~zero].min()
    with torch.no_grad():
        for weight in weights:
            weight += 1.0
    pruner(1.0)
    assert torch.equal(torch.cat([weight.flatten() == 0 for weight in weights]), zero)
    assert all(bool((module.bias != 0).any()) for module in model if isinstance(module, nn.Linear))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks of two epochs and three blocks, and few of what is compared."""
    digits.trained.cache_clear()
    for module in (digits, sparse):
        monkeypatch.setattr(module, "EPOCHS", 2)
    monkeypatch.setattr(lacoot, "WEIGHTS", (0.0, 1.0))
    monkeypatch.setattr(sparse, "SPARSITIES", (0.9,))
    monkeypatch.setattr(sparse, "WEIGHTS", (0.0, 1e-2))
    monkeypatch.setattr(rba, "LENGTHS", (3,))
    monkeypatch.setattr(family, "SHAPES", ((8, 2), (8, 3), (8, 4)))
    monkeypatch.setattr(shortlist, "RULES", (None, METRICS[0]))
    monkeypatch.setattr(cost, "ROUNDS", 2)
    yield
    digits.trained.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.filterwarnings("ignore")  # torch's exporter, and ranks of equal values
def test_each_experiment_runs(name: str) -> None:
    ran = CliRunner().invoke(main, [name, "--seeds", "2"], catch_exceptions=False)
    assert ran.exit_code == 0
    rows = [line for line in ran.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) >= 4
    assert len({row.count("|") for row in rows}) == 1
