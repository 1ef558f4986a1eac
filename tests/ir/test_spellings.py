"""Exporters, opsets and optimisers change no block, and no output once one is replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Refusal, prove
from blockfold.tests.spellings import (
    BLOCKS,
    MICROSOFT,
    NETWORKS,
    OPTIMISERS,
    SIZES,
    Spelling,
    arrays,
    copy,
    exported,
    fused_for,
    optimized,
    plain_export,
    worst_difference,
)

TOLERANCE = 1e-5
PAIRS = [(network, optimiser) for network in NETWORKS for optimiser in OPTIMISERS]


def slow(opset: int) -> Any:
    return pytest.param(opset, marks=pytest.mark.slow)


def require_the_same(network: str, model: onnx.ModelProto) -> None:
    plain, other = plain_export(network), Spelling(model, arrays(network))
    assert other.blocks == plain.blocks
    assert worst_difference(plain, other) <= TOLERANCE


@pytest.mark.parametrize("network", NETWORKS)
def test_the_plain_export_has_the_blocks_of_the_module(network: str) -> None:
    plain = plain_export(network)
    assert plain.blocks == (5 if network == "convolutions" else BLOCKS)
    assert [block.name for block in plain.stream.blocks][1] == "blocks.1"


@pytest.mark.parametrize("network", NETWORKS)
def test_the_comparison_can_fail(network: str) -> None:
    """Another map, or the same map in another place, is told from the right one."""
    plain = plain_export(network)
    assert worst_difference(plain, plain) == 0
    assert worst_difference(plain, plain, seed=8) > 0.01
    first, second = plain.span(0), plain.span(1)
    here, there = plain.replaced(first, 7), plain.replaced(second, 7)
    assert max(np.abs(a - b).max() for a, b in zip(here, there, strict=True)) > 0.01
    with pytest.raises(AssertionError, match="none of"):
        plain.same(first.start, np.zeros((1, 1), np.float32))


@pytest.mark.parametrize(("network", "optimiser"), PAIRS)
def test_optimisers_change_nothing(network: str, optimiser: str) -> None:
    require_the_same(network, OPTIMISERS[optimiser](exported(network)))


@pytest.mark.parametrize(("network", "optimiser"), PAIRS)
def test_a_fixed_batch_changes_nothing(network: str, optimiser: str) -> None:
    plain = plain_export(network, SIZES[:1])
    model = OPTIMISERS[optimiser](exported(network, fixed=True))
    other = Spelling(model, arrays(network, SIZES[:1]))
    assert other.blocks == plain.blocks
    assert worst_difference(plain, other) <= TOLERANCE


@pytest.mark.parametrize("opset", [13, 15, 18, 20, *(slow(opset) for opset in (14, 16, 19))])
@pytest.mark.parametrize("network", NETWORKS)
def test_opsets_change_nothing(network: str, opset: int) -> None:
    require_the_same(network, exported(network, opset))


@pytest.mark.parametrize("opset", [21, *(slow(opset) for opset in range(14, 21))])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_converted_opset_changes_nothing(network: str, opset: int) -> None:
    require_the_same(network, onnx.version_converter.convert_version(exported(network, 13), opset))


@pytest.mark.parametrize(
    ("network", "opset"), [("decoder", 17), ("decoder", 13), ("pre-norm", 13), ("post-norm", 16)]
)
def test_norms_that_only_onnxruntime_knows(network: str, opset: int) -> None:
    """It writes them into the standard domain, where ONNX has them later or never."""
    model = optimized(exported(network, opset), "EXTENDED")
    norm = "SimplifiedLayerNormalization" if network == "decoder" else "LayerNormalization"
    assert norm in {node.op_type for node in model.graph.node if node.domain == ""}
    require_the_same(network, model)


@pytest.mark.parametrize("op", ["Simplified", "RMSNormalization", "Gelu"])
def test_other_operators_that_onnx_does_not_know_are_refused(op: str) -> None:
    model = copy(exported("decoder"))
    model.graph.node[-1].op_type = op
    with pytest.raises(BadInput, match=f"No Op registered for {op} "):
        read(model)


@pytest.mark.parametrize(
    ("network", "model_type", "operators"),
    [
        ("pre-norm", "gpt2", {"SkipLayerNormalization", "BiasGelu"}),
        ("pre-norm", "bert", {"SkipLayerNormalization", "BiasGelu", "Attention"}),
        ("decoder", "gpt2", {"SkipSimplifiedLayerNormalization"}),
        ("post-norm", "gpt2", {"SkipLayerNormalization", "BiasGelu"}),
        ("post-norm", "bert", {"SkipLayerNormalization", "BiasGelu", "Attention"}),
    ],
)
def test_fusions_for_transformers_change_nothing(
    network: str, model_type: str, operators: set[str]
) -> None:
    model = fused_for(model_type)(exported(network))
    assert operators <= {node.op_type for node in model.graph.node if node.domain == MICROSOFT}
    require_the_same(network, model)


def test_feature_maps_in_blocks_of_channels_are_refused() -> None:
    """onnxruntime's last level keeps them in a layout of its own, which no standard Conv reads."""
    model = optimized(exported("convolutions"), "ALL")
    if not any(node.domain == "com.microsoft.nchwc" for node in model.graph.node):
        pytest.skip("onnxruntime has no blocked layout on this processor")
    spelling = Spelling(model, arrays("convolutions"))
    assert spelling.blocks >= 4
    for unit in spelling.stream.units[1:5]:
        ends = (spelling.model.graph, spelling.stream, unit.start, unit.start + 1)
        for refusal in (prove(*ends, spelling.observed), prove(*ends)):
            assert isinstance(refusal, Refusal)
            assert "NCHWc" in refusal.reason
    logits = spelling.model.graph.value(spelling.model.graph.outputs[0])
    assert (logits.dtype, logits.is_float) == ("float32", True)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["pre-norm", "decoder", "convolutions"])
def test_the_newest_operators_change_nothing(network: str) -> None:
    """torch.export at opset 23 keeps attention and RMSNorm whole."""
    model = exported(network, 23, dynamo=True, fused=True)
    wanted = {
        "pre-norm": {"Attention", "Gelu", "LayerNormalization"},
        "decoder": {"Attention", "RMSNormalization"},
        "convolutions": {"Conv"},
    }
    assert wanted[network] <= {node.op_type for node in model.graph.node}
    for optimise in OPTIMISERS.values():
        require_the_same(network, optimise(model))
