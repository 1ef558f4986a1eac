"""Changes of the data that theory says are none, through the whole job: plan, maps and verdict.

The costs are given, so that only the data decides. Each change has a twin that does count, so that
a job blind to its data would not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from blockfold.calibration.splits import split
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
from blockfold.tools.results import Result

ROWS = 320
Optimize = Callable[..., Result]


def costed(model: onnx.ModelProto, data: Arrays, folder: Path, **options: object) -> Optimize:
    """The job with the costs of a first run, on any data."""
    settings = {"threads": 1, "provider": "cpu", "survey": False, **options}
    path = folder / "first.onnx"
    api.optimize(model, data, **settings).save(path)  # type: ignore[arg-type]
    settings["costs"] = path.with_suffix(".plan.json")
    return lambda data, **more: api.optimize(model, data, **{**settings, **more})


def decisions(result: Result) -> list[tuple[str, str]]:
    return [(d.name, d.surrogate) for d in result.plan.decisions]


def same(a: Result, b: Result, rtol: float = 1e-4) -> None:
    """Equal decisions, maps to rounding of float32 activations, equal counts in the verdict."""
    assert decisions(a)
    assert decisions(a) == decisions(b)
    compare(load(a.optimized.tensors), load(b.optimized.tensors), atol=0, rtol=rtol)
    assert (a.verdict.samples, a.verdict.worse) == (b.verdict.samples, b.verdict.worse)
    assert a.verdict.drop == pytest.approx(b.verdict.drop, rel=1e-3, abs=1e-7)
    assert a.verdict.bound.upper == pytest.approx(b.verdict.bound.upper, rel=1e-3, abs=1e-7)


def reordered(data: Arrays, parts: list[NDArray[np.int64]], seed: int) -> Arrays:
    """The samples of every part in another order, each within its part."""
    order = np.arange(ROWS)
    for part in parts:
        order[part] = np.random.default_rng(seed).permutation(part)
    return {name: array[order] for name, array in data.items()}


@pytest.fixture(scope="module")
def mlp() -> onnx.ModelProto:
    return residual_mlp(4, affine=(1,))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_samples_does_not_count(
    seed: int, mlp: onnx.ModelProto, tmp_path: Path
) -> None:
    data = labelled(mlp, ROWS)
    optimize = costed(mlp, data, tmp_path, remove=2)
    parts = split(ROWS)
    inside = reordered(data, [parts.fit, parts.select, parts.certify], seed)
    plain = optimize(data)
    same(plain, optimize(inside))
    across = optimize(reordered(data, [np.arange(ROWS)], seed))  # other samples in every part
    assert decisions(across)
    with pytest.raises(AssertionError):
        same(plain, across)


def test_what_stands_in_padding_does_not_count(tmp_path: Path) -> None:
    model = masked_encoder(3, pooled=False)
    data = samples(model, ROWS)
    data["attention_mask"][:, -1] = 0
    optimize = costed(model, data, tmp_path, remove=1, metric="cosine")
    dirty = {name: array.copy() for name, array in data.items()}
    words = np.random.default_rng(3).integers(0, 30, data["input_ids"].shape)
    hidden = data["attention_mask"] == 0
    assert (words != data["input_ids"])[hidden].any()
    dirty["input_ids"][hidden] = words[hidden]
    plain = optimize(data)
    same(plain, optimize(dirty))
    longer = {
        "input_ids": np.hstack([dirty["input_ids"], words]),
        "attention_mask": np.hstack([data["attention_mask"], np.zeros_like(words)]),
    }
    same(plain, optimize(longer))
    seen = {**dirty, "attention_mask": np.ones_like(hidden, np.int64)}
    other = optimize(seen)
    assert decisions(other)
    with pytest.raises(AssertionError):
        same(plain, other)


def test_copies_that_are_named_a_group_count_once(mlp: onnx.ModelProto, tmp_path: Path) -> None:
    """Without `groups` they would tighten the bound by a root of their number."""
    data = samples(mlp, ROWS)
    groups = np.arange(ROWS)
    optimize = costed(mlp, {**data, "groups": groups}, tmp_path, remove=2, metric="kl")
    copies = {name: np.repeat(array, 3, axis=0) for name, array in data.items()}
    once = optimize({**data, "groups": groups})
    thrice = optimize({**copies, "groups": np.repeat(groups, 3)})
    same(once, thrice)
    alone = optimize(copies)
    assert alone.verdict.samples == 3 * once.verdict.samples
    assert alone.verdict.bound.upper < once.verdict.bound.upper


def test_units_of_the_input_do_not_count(tmp_path: Path) -> None:
    """The first block works on the input itself; a network that scales it back is the same one."""
    model = residual_mlp(3, affine=(0,))
    data = labelled(model, ROWS)
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    for node in scaled.graph.node:
        node.input[:] = ["whole" if name == "x" else name for name in node.input]
    scaled.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array(1 / 64, np.float32), "unit")
    )
    scaled.graph.node.insert(0, onnx.helper.make_node("Mul", ["x", "unit"], ["whole"], "scale"))
    larger = {**data, "x": data["x"] * np.float32(64)}
    compare(run(model, {"x": data["x"]}), run(scaled, {"x": larger["x"]}), atol=0, rtol=0)
    plain = costed(model, data, tmp_path, max_drop=0.05)(data)
    (tmp_path / "scaled").mkdir()
    other = costed(scaled, larger, tmp_path / "scaled", max_drop=0.05)(larger)
    assert plain.verdict == other.verdict
    assert decisions(plain)
    fresh = samples(model, 40, seed=9)
    after = run(other.model, {"x": fresh["x"] * np.float32(64)})
    compare(run(plain.model, fresh), after, atol=0, rtol=1e-4)
