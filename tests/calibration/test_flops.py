"""Floating-point operations, counted by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from blockfold.calibration.flops import flops
from blockfold.calibration.runtime import Runtime
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import (
    CLASSES,
    FLOAT,
    TOKENS,
    Net,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    samples,
)


def count(model: onnx.ModelProto, rows: int, length: int = 7) -> int:
    return flops(read(model), Runtime(threads=1), samples(model, rows, length=length))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_residual_mlp(rows: int) -> None:
    d, blocks = 8, 2
    by_hand = 2 * rows * (blocks * TOKENS * (d * 2 * d + 2 * d * d) + d * CLASSES)
    assert count(residual_mlp(blocks, d), rows) == by_hand


def test_an_affine_block_counts_its_matrices() -> None:
    d = 8
    by_hand = 2 * (TOKENS * 2 * d * 2 * d + d * CLASSES)
    assert count(residual_mlp(1, d, affine=(0,)), 1) == by_hand


def test_convolutions() -> None:
    stem = 6 * 6 * 6 * (3 * 9)
    block = 2 * 6 * 6 * 6 * (6 * 9)
    assert count(residual_cnn((6,), 1), 2) == 2 * 2 * (stem + block + 6 * CLASSES)
    strided = 4 * 3 * 3 * (6 * 9)
    second = 2 * 4 * 3 * 3 * (4 * 9)
    assert count(residual_cnn((6, 4), 1), 1) == 2 * (stem + block + strided + second + 4 * CLASSES)


def test_a_depthwise_convolution_counts_one_channel_each() -> None:
    net = Net()
    net.node("Conv", "x", net.weight(4, 1, 3, 3), out="y", group=4, pads=[1] * 4)
    io = (FLOAT, ("batch", 4, 6, 6))
    assert count(net.model({"x": io}, {"y": io}), 1) == 2 * 4 * 36 * 9


@pytest.mark.parametrize("length", [3, 7])
def test_attention_grows_with_the_square_of_the_length(length: int) -> None:
    d = 8
    products = 4 * length * d * d + 2 * length * length * d
    mlp = 2 * length * d * 2 * d
    by_hand = 2 * (2 * (products + mlp) + d * CLASSES)
    assert count(masked_encoder(2, d), 1, length) == by_hand


def test_a_transposed_gemm() -> None:
    net = Net()
    net.node("Gemm", "x", net.constant(np.ones((5, 3), np.float32)), out="y", transA=1, transB=1)
    model = net.model({"x": (FLOAT, (3, "batch"))}, {"y": (FLOAT, ("batch", 5))})
    assert (
        flops(read(model), Runtime(threads=1), {"x": np.ones((3, 2), np.float32)}) == 2 * 2 * 5 * 3
    )


def test_weights_from_constant_nodes_count_too() -> None:
    net = Net()
    value = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32))
    net.nodes.append(onnx.helper.make_node("Constant", [], ["literal"], value=value))
    net.node("MatMul", "x", "literal", out="y")
    model = net.model({"x": (FLOAT, ("batch", 4))}, {"y": (FLOAT, ("batch", 3))})
    assert count(model, 2) == 2 * 2 * 4 * 3
