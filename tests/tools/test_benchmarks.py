"""Benchmarks: their figures are right, and they run on a model of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from blockfold.ir.spans import Span
from blockfold.passes.rating import METRICS
from blockfold.passes.recipe import Healing, Recipe
from blockfold.passes.surrogates import Wish
from blockfold.tests.networks import labelled, residual_mlp
from blockfold.tools.benchmarks import blocks, compare, device, effort, predictors
from blockfold.tools.benchmarks.ablation import ablations
from blockfold.tools.benchmarks.paired import Damage, correlation, similarities


def test_similarities_ignore_lengths_and_the_correlation_knows_its_own() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((30, 8))
    one = similarities(vectors)
    assert correlation(one, similarities(3.0 * vectors)) == pytest.approx(1.0)
    assert correlation(one, similarities(rng.standard_normal((30, 8)))) < 0.5


def test_a_paired_difference_is_sharper_than_the_two_apart() -> None:
    rng = np.random.default_rng(2)
    shared = rng.standard_normal(400)
    better, worse = (Damage(v, shared + v, 0.0, 0.0, 10, "loss") for v in (0.1, 0.2))
    value, low, high = better.minus(worse)
    assert low <= value <= high < 0
    assert better.interval[1] > worse.interval[0]  # apart they overlap


def wish(form: str) -> Wish:
    span = Span("x", 0, 1, "x", "y", -1, 3, "float32", "s", 1.0, frozenset(), ())
    return Wish(span, form)  # type: ignore[arg-type]


def test_ablations_take_away_one_part_each() -> None:
    wishes = (wish("affine + folded + context"), wish("folded"))
    recipe = Recipe(wishes, Healing(30.0, 30.0))
    found = ablations(recipe, dict.fromkeys(wishes, "affine"))
    assert found["all"] is recipe
    forms = {name: [w.form for w in made.wishes] for name, made in found.items()}
    assert forms["no fold"] == ["affine + context", "affine"]
    assert forms["no context"] == ["affine + folded", "folded"]
    assert found["no refit"].healing.refit is None
    assert found["no row weights"].healing == Healing(1.0, 1.0)
    assert not found["no bias"].healing.bias and not found["no ridge"].healing.ridge
    plain = Recipe((wish("affine"),), Healing(refit=None))
    assert set(ablations(plain, {})) == {"all", "no bias", "no ridge", "no row weights"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model = residual_mlp(4, affine=(2,))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", allow_pickle=False, **labelled(model, 240))
    return tmp_path / "model.onnx", tmp_path / "samples.npz"


def test_methods_are_compared_on_a_model_of_ones_own(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "BLOCKS", range(1, 3))
    target = files[0].with_name("found.json")
    words = ["--model", "mine", *map(str, files), "accuracy", "--json", str(target)]
    ran = CliRunner().invoke(compare.main, words, catch_exceptions=False)
    assert ran.exit_code == 0
    (found,) = json.loads(target.read_text())
    cells = {(c["table"], c["method"], c["blocks"]): c for c in found["cells"]}
    for table in ("own spans", "same spans"):
        for depth in (1, 2):
            assert {(table, m, depth) in cells for m in ("blockfold", "drop", "rba")} == {True}
            assert cells[table, "blockfold", depth]["against_best"] is not None
    ours, rba = cells["own spans", "blockfold", 1], cells["own spans", "rba", 1]
    assert ours["left"] <= rba["left"] + 1e-9
    assert ours["smooth"] <= 1e-6 + rba["smooth"]
    assert found["predictions"] and {a["without"] for a in found["ablations"]} >= {"all"}
    assert "| 1 |" in ran.output and "foretold" in ran.output and "without" in ran.output


def test_the_effort_of_one_optimization_is_told(files: tuple[Path, Path]) -> None:
    words = [*map(str, files), "--remove", "1"]
    ran = CliRunner().invoke(effort.main, words, catch_exceptions=False)
    assert ran.exit_code == 0
    for said in ("plain pass:", "| fit |", "| whole |", "peak memory:", "oracle", "share"):
        assert said in ran.output


@pytest.mark.slow
def test_statistics_are_timed_on_a_device_beside_plain_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = device.Size(depth=2, width=8, heads=2, side=2)
    monkeypatch.setattr(device, "SMALL", tiny)
    monkeypatch.setattr(device, "VIT_B", tiny)
    words = ["--samples", "12", "--rounds", "1", "--batch", "4", "--provider", "cpu"]
    ran = CliRunner().invoke(device.main, words)
    assert ran.exit_code == 0, ran.output
    rows = [line.split("|")[1:3] for line in ran.output.splitlines() if line.startswith("| ")][2:]
    assert [name.split(",")[0].strip() for name, _ in rows] == ["torch", "graph", "fetched"]
    assert all(float(ratio) > 0 for _, ratio in rows)


def test_what_metrics_foretell_is_told_of_a_model_of_ones_own(tmp_path: Path) -> None:
    """Two of six blocks are affine: their maps do no damage, and only some metrics know."""
    model = residual_mlp(6, affine=(1, 4))
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "samples.npz", allow_pickle=False, **labelled(model, 240))
    target = tmp_path / "found.json"
    files = [str(tmp_path / name) for name in ("model.onnx", "samples.npz")]
    words = ["--model", "mine", *files, "accuracy", "--json", str(target)]
    ran = CliRunner().invoke(predictors.main, words, catch_exceptions=False)
    assert ran.exit_code == 0
    found = {one["metric"]: one for one in json.loads(target.read_text())}
    assert list(found) == [*METRICS, predictors.FORETOLD]
    assert {one["units"] for one in found.values()} == {6}
    for knowing in ("affine-r2", "nbl", predictors.FORETOLD):
        assert found[knowing]["mapped"] > 0.7
    assert found["block-influence"]["mapped"] < found["affine-r2"]["mapped"]
    assert f"| {predictors.FORETOLD} |" in ran.output


def test_methods_are_compared_on_blocks_that_are_named(files: tuple[Path, Path]) -> None:
    """The planted affine block is nothing lost by a map, and something by dropping it."""
    target = files[0].with_name("found.json")
    words = ["--model", "mine", *map(str, files), "kl", "--json", str(target)]
    words += ["--blocks", "2", "--blocks", "0-1"]
    ran = CliRunner().invoke(blocks.main, words, catch_exceptions=False)
    assert ran.exit_code == 0
    cells = {(c["table"], c["method"]): c for c in json.loads(target.read_text())}
    assert {table for table, _ in cells} == {"2", "0-1"}
    assert {method for _, method in cells} >= {"blockfold", "drop", "rba"}
    assert cells["2", "blockfold"]["damage"] < 1e-6 < 1e-4 < cells["2", "drop"]["damage"]
    assert cells["0-1", "blockfold"]["damage"] > 1e-4
    assert {c["blocks"] for c in cells.values()} == {1, 2}
    assert "| 0-1 | blockfold |" in ran.output


@pytest.mark.parametrize(
    ("given", "said"), [("4", "there are 0 to 3"), ("2-1", "there are 0 to 3"), ("a-b", "write 4")]
)
def test_blocks_that_are_not_there_are_refused(
    given: str, said: str, files: tuple[Path, Path]
) -> None:
    words = ["--model", "mine", *map(str, files), "kl", "--blocks", given]
    ran = CliRunner().invoke(blocks.main, words)
    assert ran.exit_code == 2
    assert said in ran.output
