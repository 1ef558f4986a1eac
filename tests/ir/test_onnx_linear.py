"""Linear operations that feed a sum: found in every spelling, and giving that sum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from blockfold.calibration.features import as_rows, rows_of
from blockfold.ir.cuts import find_chains
from blockfold.ir.onnx_extract import extract
from blockfold.ir.onnx_file import read
from blockfold.ir.onnx_linear import as_weight, constant, linear_into, matrix, offset
from blockfold.ir.onnx_reads import picked_positions
from blockfold.passes.surrogates import linear_input
from blockfold.tests.networks import (
    FLOAT,
    TOKENS,
    Net,
    compare,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    run,
    samples,
    tabular,
)

D = 6


def spelled(branch: Callable[[Net, str], str], *, swapped: bool = False) -> onnx.ModelProto:
    """total = x + branch(u), or the sum the other way round."""
    net = Net()
    u = net.node("Relu", "x", out="u")
    terms = ["x", branch(net, u)]
    net.node("Add", *(terms[::-1] if swapped else terms), out="total")
    shape = ("batch", TOKENS, D)
    return net.model({"x": (FLOAT, shape)}, {"total": (FLOAT, shape)})


def scaled(net: Net, u: str) -> str:
    made = net.linear(u, D, D)
    return net.node("Mul", made, net.bias(D))


def biased_before_scale(net: Net, u: str) -> str:
    made = net.node("Add", net.bias(D), net.node("MatMul", u, net.weight(D, D)))
    return net.node("Mul", net.bias(D), made)


SPELLINGS: dict[str, Callable[[Net, str], str]] = {
    "matmul": lambda net, u: net.node("MatMul", u, net.weight(D, D)),
    "bias": lambda net, u: net.linear(u, D, D),
    "scale": scaled,
    "bias first": biased_before_scale,
    "identity": lambda net, u: net.node("Identity", net.linear(u, D, D)),
}


def assert_gives(model: onnx.ModelProto, value: str, axis: int) -> None:
    """W and b as they are told make the sum from its terms, row by row."""
    source = read(model)
    linear = linear_into(source, value)
    assert linear is not None
    feeds = samples(model, 3)
    names = [n for n in (value, linear.u, linear.residual) if n not in feeds]
    seen = {**feeds, **run(model, feeds, names)}
    W = matrix(source, linear)
    rows = rows_of(linear_input(linear), seen[linear.u])
    made = as_rows(seen[linear.residual], axis) + rows @ W + offset(source, linear, W.shape[1])
    np.testing.assert_allclose(made, as_rows(seen[value], axis), atol=1e-4)
    if not any(source.graph.nodes[index].op == "Mul" for index in linear.after):
        stored = as_weight(source, linear, W)
        np.testing.assert_array_equal(stored, constant(source, linear.weight))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_of_a_linear_operation(name: str, *, swapped: bool) -> None:
    assert_gives(spelled(SPELLINGS[name], swapped=swapped), "total", -1)


def test_gemm_and_convolution() -> None:
    assert_gives(tabular(), "h1", -1)
    assert_gives(residual_cnn(), "z1", 1)


@pytest.mark.parametrize(
    "branch",
    [
        lambda net, u: net.node("Relu", net.linear(u, D, D)),
        lambda net, u: net.node("MatMul", u, net.node("Transpose", u, perm=[0, 2, 1])),
        lambda net, u: net.node("Mul", net.linear(u, D, D), u),
    ],
    ids=["activated", "no weight", "gated"],
)
def test_what_is_not_linear_is_not_taken(branch: Callable[[Net, str], str]) -> None:
    net = Net()
    u = net.node("Relu", "x", out="u")
    net.node("Add", "x", branch(net, u), out="total")
    shape = ("batch", D, D)
    model = net.model({"x": (FLOAT, shape)}, {"total": (FLOAT, shape)})
    assert linear_into(read(model), "total") is None


def test_the_token_that_is_read_in_the_end() -> None:
    for model, expected in ((masked_encoder(), (0,)), (residual_mlp(), ())):
        source = read(model)
        assert picked_positions(source, find_chains(source.graph)[0]) == expected


def test_a_piece_of_a_graph_gives_what_the_whole_gives() -> None:
    model = masked_encoder(2)
    feeds = samples(model, 5)
    held = run(model, feeds, ["h0", "m1"])
    piece = extract(read(model), ["h0"], ["m1", "pooled"])
    assert "input_ids" not in piece.graph.inputs
    given = {"h0": held["h0"], "attention_mask": feeds["attention_mask"]}
    made = run(piece.proto, {name: given[name] for name in piece.graph.inputs})
    whole = {"m1": held["m1"], **run(model, feeds)}
    compare(whole, made, atol=1e-5, rtol=1e-5)
