"""Published methods: their choice of blocks, and their maps as their authors solve them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from blockfold.calibration.features import as_rows
from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.errors import BadInput, Unsupported
from blockfold.ir.onnx_file import read
from blockfold.ir.onnx_linear import linear_into, matrix, offset
from blockfold.passes.budget import Budget
from blockfold.passes.costs import CostModel, Costs
from blockfold.passes.layout import lay_out
from blockfold.passes.methods import PRESETS, Method, Published, lowest, plateau, redtest
from blockfold.passes.rating import Metric, rating
from blockfold.passes.task import make_task
from blockfold.passes.trial import Trials
from blockfold.tests.networks import (
    Arrays,
    compare,
    labelled,
    masked_encoder,
    residual_mlp,
    run,
    samples,
)
from blockfold.tools import api

ROWS = 240
NO_COSTS = Costs(1.0, {}, {})


@contextmanager
def trying(model: onnx.ModelProto, data: Arrays) -> Iterator[Trials]:
    source = read(model)
    with open_data(data, source.inputs) as opened:
        task = make_task(source, opened, split(opened.samples), Runtime(threads=1))
        layout = lay_out(task)
        with Trials(task, layout, CostModel(layout.anatomies, NO_COSTS), None) as trials:
            yield trials


def rows(model: onnx.ModelProto, data: Arrays, names: list[str]) -> list[np.ndarray]:
    """Values of the original on the fit and select splits, row by row."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    splits = split(ROWS)
    found = run(tapped, {"x": data["x"][np.concatenate([splits.fit, splits.select])]})
    return [as_rows(found[name], -1).astype(np.float64) for name in names]


def solved(trials: Trials, method: Method, count: int) -> tuple[np.ndarray, np.ndarray, str, str]:
    recipe = Published(trials).recipe(method, count)
    assert recipe is not None
    ((replacement,),) = trials.solved_on_both(trials.fit([recipe]))
    assert replacement.solution is not None
    span = replacement.span
    return replacement.solution.W, replacement.solution.b, span.entry, span.exit


def test_rba_is_plain_least_squares_about_zero() -> None:
    model = residual_mlp(4)
    data = labelled(model, ROWS)
    with trying(model, data) as trials:
        W, b, entry, exit_ = solved(trials, "rba", 1)
    x, y = rows(model, data, [entry, exit_])
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    compare({"W": W}, {"W": expected}, atol=1e-4, rtol=1e-3)
    assert not b.any()


def test_replaceme_folds_a_map_of_the_branch_into_its_linear_operation() -> None:
    model = residual_mlp(4)
    data = labelled(model, ROWS)
    with trying(model, data) as trials:
        W, b, entry, exit_ = solved(trials, "replaceme", 1)
        linear = linear_into(trials.task.plain, entry)
        assert linear is not None
        W0 = matrix(trials.task.plain, linear)
        b0 = offset(trials.task.plain, linear, W0.shape[1])
    u, r, y = rows(model, data, [linear.u, linear.residual, exit_])
    T = np.linalg.lstsq(u @ W0 + b0, y - r, rcond=None)[0]
    compare({"W": W, "b": b}, {"W": W0 @ T, "b": b0 @ T}, atol=1e-3, rtol=1e-2)


def test_the_blocks_of_least_influence_are_dropped() -> None:
    model = residual_mlp(5)
    data = labelled(model, ROWS)
    with trying(model, data) as trials:
        survey = api.inspect(model, data, threads=1, provider="cpu").survey
        assert survey is not None
        blocks = [found for found in survey.spans if found.span.blocks == 1.0]
        ranked = sorted(blocks, key=lambda found: found.block_influence)
        recipe = Published(trials).recipe("drop", 2)
    assert recipe is not None
    chosen = sorted(at for w in recipe.wishes for at in range(w.span.start, w.span.stop))
    assert chosen == sorted(r.span.start for r in ranked[:2])
    assert {w.form for w in recipe.wishes} == {"identity"}


def test_neighbours_become_one_span() -> None:
    model = residual_mlp(4)
    with trying(model, labelled(model, ROWS)) as trials:
        published = Published(trials)
        for count in (1, 2):
            recipe = published.recipe("rba", count)
            assert recipe is not None
            spans = [wish.span for wish in recipe.wishes]
            assert sum(span.blocks for span in spans) == count
            assert not any(a.touches(b) for a in spans for b in spans if a is not b)


def test_replaceme_needs_a_sum_without_a_norm_or_activation_after_it() -> None:
    model = masked_encoder(3)  # normalises after every sum
    with trying(model, samples(model, 80)) as trials:
        published = Published(trials)
        assert any(map(trials.forms.is_fed, trials.layout.spans))
        assert published.recipe("rba", 1) is not None
        assert published.recipe("replaceme", 1) is None


RULES: dict[Method, Metric] = {
    "redtest": "cka",
    "modularity": "modularity",
    "lacoot": "sliced-w2",
    "rba": "block-redundancy",
}


@pytest.mark.parametrize("method", RULES)
def test_a_rule_takes_the_blocks_that_its_metric_rates_lowest(method: Method) -> None:
    model = residual_mlp(5)
    data = labelled(model, ROWS)
    survey = api.inspect(model, data, threads=1, provider="cpu").survey
    assert survey is not None
    blocks = [found for found in survey.spans if found.span.blocks == 1.0]
    ranked = sorted(blocks, key=lambda found: rating(RULES[method], found) or 0.0)
    with trying(model, data) as trials:
        for count in (1, 2):
            recipe = Published(trials).recipe(method, count)
            assert recipe is not None
            chosen = [at for w in recipe.wishes for at in range(w.span.start, w.span.stop)]
            assert sorted(chosen) == sorted(found.span.start for found in ranked[:count])
            assert {w.form for w in recipe.wishes} == {PRESETS[method].form}


def test_rules_of_choice() -> None:
    ratings = [0.3, 0.01, 0.2, -0.1, 0.01]
    assert sorted(lowest(ratings, 3)) == [1, 3, 4]
    assert sorted(redtest(ratings, 2)) == [3, 4], "of equal blocks the earlier is kept"
    assert sorted(redtest(ratings, 9)) == [0, 1, 2, 3, 4]
    assert sorted(plateau(ratings, 5)) == [1, 3, 4], "what gains 0.03 stays"


def test_modularity_takes_no_block_that_sorts_the_classes() -> None:
    """With every gain above the threshold there is nothing to take."""
    model = residual_mlp(4)
    with trying(model, labelled(model, ROWS)) as trials:
        published = Published(trials)
        assert published.recipe("modularity", 1) is not None
        for span, one in published._measured.items():
            assert one.likeness is not None
            likeness = replace(one.likeness, modularity_gain=0.5)
            published._measured[span] = replace(one, likeness=likeness)
        assert published.recipe("modularity", 1) is None
        with pytest.raises(Unsupported, match="applies to no block"):
            published.recipes("modularity", Budget.of(max_drop=0.1))


def test_modularity_needs_classes() -> None:
    model = residual_mlp(4)
    data = samples(model, ROWS)
    settings: dict[str, Any] = {"threads": 1, "provider": "cpu", "method": "modularity"}
    with pytest.raises(BadInput, match=r"tells the metric modularity of no block: .* labels"):
        api.optimize(model, data, remove=1, metric="nmse", **settings)


@pytest.mark.parametrize("method", PRESETS)
def test_a_method_runs_through_the_main_job(method: Method) -> None:
    model = residual_mlp(4, affine=(2,))
    result = api.optimize(
        model,
        labelled(model, 320),
        remove=1,
        method=method,
        threads=1,
        provider="cpu",
    )
    assert sum(decision.blocks for decision in result.plan.decisions) == 1
    assert result.plan.refits == ()


@pytest.mark.parametrize(("remove", "blocks"), [(0.3, 1.0), (1.0, 1.0), (1.2, 2.0)])
def test_part_of_a_block_is_a_whole_one(remove: float, blocks: float) -> None:
    """They know whole blocks only, and a budget is to be reached."""
    model = residual_mlp(4)
    with trying(model, labelled(model, ROWS)) as trials:
        (recipe,) = Published(trials).recipes("drop", Budget.of(remove=remove))
        assert sum(wish.span.blocks for wish in recipe.wishes) == blocks


def test_more_blocks_than_can_go_are_refused() -> None:
    model = residual_mlp(2)
    with trying(model, labelled(model, ROWS)) as trials:
        published = Published(trials)
        with pytest.raises(BadInput, match="--method drop: cannot remove 5 blocks here"):
            published.recipes("drop", Budget.of(remove=5))
        assert len(published.recipes("drop", Budget.of(max_drop=0.1))) == 1


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(BadInput, match="one of blockfold, drop, redtest, modularity, lacoot, rba"):
        api.optimize(residual_mlp(2), None, method="magic")  # type: ignore[arg-type]


def test_replaceme_where_it_applies_to_nothing() -> None:
    model = residual_mlp(2)
    with trying(model, labelled(model, ROWS)) as trials:
        published = Published(trials)
        published._runs = [run for run in published._runs if run[1].start == 0]
        with pytest.raises(Unsupported, match="applies to no block"):
            published.recipes("replaceme", Budget.of(max_drop=0.1))
