"""The experiments' own machinery: their tables, their pruning, and that each runs in small."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from blockfold.passes.rating import METRICS
from blockfold.tools.experiments import cost, digits, family, lacoot, rba, shortlist, sparse
from blockfold.tools.experiments.__main__ import main
from blockfold.tools.experiments.lacoot import Removal
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
    """Two epochs of training, and few of what is compared."""
    digits.trained.cache_clear()
    monkeypatch.setattr(digits, "DEEP_EPOCHS", 2)
    monkeypatch.setattr(sparse, "EPOCHS", 2)
    monkeypatch.setattr(lacoot, "PENALTIES", ((0.0, False), (1.0, True)))
    monkeypatch.setattr(sparse, "SPARSITIES", (0.9,))
    monkeypatch.setattr(sparse, "WEIGHTS", (0.0, 1e-4, 1e-2))
    monkeypatch.setattr(rba, "LENGTHS", (3,))
    yield
    digits.trained.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "rows"), [("sparse", 3), ("rba", 6), ("lacoot", 2)])
@pytest.mark.filterwarnings("ignore")  # torch's exporter has some of its own
def test_an_experiment_runs(name: str, rows: int) -> None:
    ran = CliRunner().invoke(main, [name, "--seeds", "2"], catch_exceptions=False)
    assert ran.exit_code == 0
    lines = [line for line in ran.stdout.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + rows
    assert len({line.count("|") for line in lines}) == 1
    if name == "rba":  # even features of a network hardly trained sort digits
        assert float(lines[2].split(" | ")[1].split()[0]) > 30


def test_blocks_go_until_the_first_that_costs_more() -> None:
    removal = Removal((0.95, 0.945, 0.93, 0.949, 0.5), (0.9,) * 5, 0.0)
    assert [removal.gone(drop) for drop in (0.001, 0.01, 0.03, 0.9)] == [0, 1, 3, 4]


def test_ratios_of_times_are_beside_a_plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ROUNDS", 1)
    head, rule, *rows, last = cost.report(())
    assert (head.count("|"), rule.count("|"), last) == (4, 4, "")
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(cost.PENALTIES)
    assert all(float(row.split(" | ")[1]) > 0 for row in rows)


def test_families_are_told_in_the_order_of_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank correlation is that of what is planted: -1 for the share, 1 for the count."""

    def planted(seed: int, width: int, depth: int) -> tuple[float, float, float, float]:
        return 0.9, depth * width + seed, 1 / (depth * width), depth * width / 1000

    monkeypatch.setattr(family, "_one", planted)
    lines = [*family.report(range(2))]
    assert "9 blocks" in lines[2] and "3 blocks" in lines[-5]
    assert lines[-3].endswith("seed by seed: -1.00, -1.00")
    assert lines[-2].endswith("seed by seed: 1.00, 1.00")


def test_damages_are_told_beside_those_of_today_s_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    damages = dict.fromkeys(shortlist.RULES, 2.0) | {None: 1.0}
    monkeypatch.setattr(shortlist, "_damages", lambda _seed: damages)
    _, _, today, *rows, _ = shortlist.report(range(2))
    assert today == "| foretold damage | 1.0000 (0.0000) | 1.00, 1.00 |"
    assert len(rows) == len(METRICS) and all("2.00, 2.00" in row for row in rows)
