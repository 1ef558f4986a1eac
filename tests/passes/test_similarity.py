"""How alike layers are found to be, and candidates ranked by it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import blockfold
from blockfold.calibration.splits import split
from blockfold.ir.errors import BadInput
from blockfold.passes import ranking
from blockfold.passes.ranking import Candidate
from blockfold.passes.similarity import Similarity
from blockfold.tests.networks import (
    FLOAT,
    LOGITS,
    TOKENS,
    Arrays,
    Net,
    labelled,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    run,
    samples,
)
from blockfold.tools.documents import inspection_document

QUICK: dict[str, Any] = {"threads": 1, "provider": "cpu"}


def found(model: onnx.ModelProto, data: Arrays) -> Similarity:
    survey = blockfold.inspect(model, data, **QUICK).survey
    assert survey is not None
    (similarity,) = survey.similarities
    return similarity


def idle(d: int = 8, share: float = 0.0) -> onnx.ModelProto:
    """The second of three blocks adds nothing, or a share of what it makes."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        branch = net.mlp(net.norm(h, d), d)
        if i == 1:
            branch = net.node("Mul", branch, net.constant(np.full(1, share, np.float32)))
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(h, d)
    return net.model({"x": (FLOAT, ("batch", TOKENS, d))}, LOGITS)


def test_a_block_that_does_nothing_has_ends_that_are_alike() -> None:
    similarity = found(idle(), labelled(idle(), 240))
    units = {unit.name: unit for unit in similarity.units}
    still = units["blocks.1"]
    assert still.cka == pytest.approx(1.0, abs=1e-6)
    assert still.max_sliced_wasserstein == pytest.approx(0.0, abs=1e-6)
    assert still.modularity_gain == pytest.approx(0.0, abs=1e-6)
    assert units["blocks.0"].cka < 0.999
    assert (units["blocks.0"].max_sliced_wasserstein or 0.0) > 0.01
    assert similarity.communities == "labels"
    assert similarity.modularity is not None
    assert len(similarity.modularity) == len(similarity.cka) == len(similarity.units) + 1


def test_a_rectifier_that_never_switches_has_no_entropy() -> None:
    """The second block's is always on: its bias is far above what its weights can take off."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        z = net.linear(net.norm(h, 8), 8, 16)
        if i == 1:
            z = net.node("Add", z, net.constant(np.full(16, 100.0, np.float32)))
        h = net.node("Add", h, net.linear(net.node("Relu", z), 16, 8), out=f"h{i}")
    net.head(h, 8)
    model = net.model({"x": (FLOAT, ("batch", TOKENS, 8))}, LOGITS)
    entropy = {u.name: u.activation_entropy for u in found(model, samples(model, 120)).units}
    assert entropy["blocks.1"] == 0.0
    assert (entropy["blocks.0"] or 0.0) > 0.5
    assert entropy["head"] is None


def test_entropies_are_counted_over_all_batches() -> None:
    """Against NumPy on the whole of the fit split; each channel of a feature map is a unit."""
    model, data = residual_cnn(), samples(residual_cnn(), 200)
    inner = next(
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Relu"
        and not node.output[0].startswith("h")
        and node.name.startswith("/blocks.0")
    )
    fit = split(200).fit
    z = run(model, {"x": data["x"][fit]}, [inner])[inner]
    p = (z > 0).mean(axis=(0, 2, 3))
    expected = np.mean([-q * np.log2(q) - (1 - q) * np.log2(1 - q) if 0 < q < 1 else 0 for q in p])
    units = {unit.name: unit for unit in found(model, data).units}
    assert units["blocks.0"].activation_entropy == pytest.approx(expected, abs=1e-9)


def test_of_a_block_its_two_ends_are_compared() -> None:
    model = masked_encoder(2)
    survey = blockfold.inspect(model, samples(model, 120), **QUICK).survey
    assert survey is not None
    (similarity,) = survey.similarities
    blocks = [one for one in survey.spans if one.span.stop - one.span.start == 2]
    assert blocks
    for block in blocks:
        start, stop, likeness = block.span.start, block.span.stop, block.likeness
        assert likeness is not None
        assert likeness.cka == similarity.cka[start][stop]
        assert likeness.name == block.span.name


def test_without_labels_the_model_s_own_classes_serve() -> None:
    similarity = found(residual_mlp(), samples(residual_mlp(), 240))
    assert similarity.communities == "the model's own classes"


def test_without_classes_no_modularity_is_told() -> None:
    model = residual_mlp()
    data = samples(model, 120)
    survey = blockfold.inspect(model, data, metric="nmse", **QUICK).survey
    assert survey is not None
    (similarity,) = survey.similarities
    assert similarity.communities is None and similarity.modularity is None
    assert {unit.modularity_gain for unit in similarity.units} == {None}


def test_units_that_change_width_have_no_distance_but_a_likeness() -> None:
    units = found(residual_cnn((6, 8)), samples(residual_cnn((6, 8)), 160)).units
    changed = [unit for unit in units if unit.max_sliced_wasserstein is None]
    kept = [unit for unit in units if unit.max_sliced_wasserstein is not None]
    assert {"stem0", "stem1"} <= {unit.name for unit in changed}
    assert {f"blocks.{i}" for i in range(6)} <= {unit.name for unit in kept}
    assert all(-1 <= unit.cka <= 1 for unit in units)


def test_layers_that_never_vary_have_stated_values() -> None:
    """Whatever the sample, the stream is the same: no NaN anywhere."""
    net = Net()
    quiet = net.node("Mul", "x", net.constant(np.zeros(1, np.float32)))
    h = net.node("Add", quiet, net.constant(np.ones(8, np.float32)))
    for i in range(3):
        net.scope = f"/blocks.{i}"
        branch = net.linear(net.node("Relu", net.linear(h, 8, 16)), 16, 8)
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(h, 8)
    model = net.model({"x": (FLOAT, ("batch", TOKENS, 8))}, LOGITS)
    data = samples(model, 120) | {"labels": np.arange(120) % 3}
    inspection = blockfold.inspect(model, data, **QUICK)
    survey = inspection.survey
    assert survey is not None
    (similarity,) = survey.similarities
    assert np.isfinite(similarity.cka).all()
    json.dumps(inspection_document(inspection)["spans"], allow_nan=False, default=vars)
    still = [one for one in survey.spans if one.span.name == "blocks.1"]
    assert still
    for one in still:
        assert one.likeness is not None
        assert (one.likeness.cka, one.nbl_bound) == (0.0, 0.0)
        assert np.isfinite([one.cosine, one.angular_distance, one.identity_error]).all()
        assert one.affine_r2 in (1.0, -np.inf)
        assert one.likeness.modularity_gain == 0.0


def test_padding_has_no_part() -> None:
    model = masked_encoder(2)
    data = samples(model, 120)
    mask = next(name for name in data if "mask" in name)
    ids = next(name for name in data if name != mask)
    data[mask] = np.ones_like(data[mask])
    data[mask][::2, 4:] = 0
    other = {**data, ids: np.where(data[mask] == 0, 1, data[ids])}
    assert (other[ids] != data[ids]).any()
    one, two = found(model, data), found(model, other)
    np.testing.assert_allclose(one.cka, two.cka, atol=1e-5)
    told = [unit.activation_entropy for unit in one.units]
    assert told == [unit.activation_entropy for unit in two.units]
    assert any(told)
    whole = found(model, {**data, mask: np.ones_like(data[mask])})
    assert np.abs(np.subtract(one.cka, whole.cka)).max() > 1e-3


def test_the_order_of_samples_and_of_batches_changes_nothing() -> None:
    model = residual_cnn()
    data = samples(model, 200)
    one = blockfold.inspect(model, data, batch=7, **QUICK).survey
    two = blockfold.inspect(model, data, batch=64, **QUICK).survey
    assert one is not None and two is not None
    np.testing.assert_allclose(one.similarities[0].cka, two.similarities[0].cka, atol=1e-6)


def test_too_few_samples_for_a_kernel_are_no_obstacle() -> None:
    survey = blockfold.inspect(residual_mlp(), samples(residual_mlp(), 8), **QUICK).survey
    assert survey is not None
    assert survey.similarities == ()
    assert {one.likeness for one in survey.spans} == {None}


def test_candidates_are_ranked() -> None:
    """A model with an idle block has more layers alike than the same one where it works."""
    data = labelled(idle(), 240)
    ranked = blockfold.rank([idle(), idle(share=4.0)], data, **QUICK)
    assert {c.name for c in ranked} == {"#0", "#1"}
    by_name = {c.name: c for c in ranked}
    assert by_name["#0"].quality == pytest.approx(1.0), "its own classes are the labels"
    assert by_name["#0"].msrs > by_name["#1"].msrs
    assert by_name["#0"].is_pareto


def test_what_is_beaten_in_everything_is_not_in_the_pareto_set() -> None:
    good = Candidate("good", 0.9, 3.0, 0.1, 4, 100, 1.0)
    worse = replace(good, name="worse", quality=0.8, latency_ms=2.0)
    faster = replace(good, name="faster", quality=0.7, latency_ms=0.5)
    twin = replace(good, name="twin")
    ranked = ranking._sorted([worse, faster, good, twin])
    assert [(c.name, c.is_pareto) for c in ranked] == [
        ("good", True),
        ("twin", True),
        ("faster", True),
        ("worse", False),
    ]


def test_candidates_that_cannot_be_compared_are_refused() -> None:
    data = labelled(residual_mlp(), 60)
    with pytest.raises(BadInput, match="different inputs"):
        blockfold.rank([residual_mlp(), residual_cnn()], data, **QUICK)
    with pytest.raises(BadInput, match="add `labels`"):
        blockfold.rank([residual_mlp()], samples(residual_mlp(), 60), **QUICK)
    with pytest.raises(BadInput, match="name at least one"):
        blockfold.rank([], data, **QUICK)
