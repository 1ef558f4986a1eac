"""Rectifiers are found in all spellings, and what is none is not taken for one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blockfold.ir.onnx_activations import rectified
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import FLOAT, Net, run

WIDTH = 6
Spelling = Callable[[Net, str], str]


def number(net: Net, value: float) -> str:
    return net.constant(np.full(1, value, np.float32))


def erf_gelu(net: Net, z: str) -> str:
    """0.5 z (1 + erf(z / sqrt 2)), as exporters write it."""
    inner = net.node("Erf", net.node("Div", z, number(net, 2**0.5)))
    return net.node("Mul", net.node("Mul", z, number(net, 0.5)), one_more(net, inner))


def tanh_gelu(net: Net, z: str) -> str:
    cube = net.node("Mul", number(net, 0.044715), net.node("Pow", z, number(net, 3.0)))
    inner = net.node("Mul", net.node("Add", z, cube), number(net, 0.7979))
    return net.node("Mul", net.node("Mul", z, number(net, 0.5)), one_more(net, tanh(net, inner)))


def one_more(net: Net, z: str) -> str:
    return net.node("Add", z, number(net, 1.0))


def tanh(net: Net, z: str) -> str:
    return net.node("Tanh", z)


def silu(net: Net, z: str) -> str:
    return net.node("Mul", net.node("Sigmoid", z), z)


def relu6(net: Net, z: str) -> str:
    return net.node("Clip", z, number_0d(net, 0.0), number_0d(net, 6.0))


def number_0d(net: Net, value: float) -> str:
    return net.constant(np.array(value, np.float32))


RECTIFYING: dict[str, Spelling] = {
    "Relu": lambda net, z: net.node("Relu", z),
    "LeakyRelu": lambda net, z: net.node("LeakyRelu", z),
    "HardSwish": lambda net, z: net.node("HardSwish", z),
    "erf GELU": erf_gelu,
    "tanh GELU": tanh_gelu,
    "SiLU": silu,
    "ReLU6": relu6,
}

OTHERS: dict[str, Spelling] = {
    "tanh": tanh,
    "hard tanh": lambda net, z: net.node("Clip", z, number_0d(net, -1.0), number_0d(net, 1.0)),
    "square": lambda net, z: net.node("Mul", z, z),
    "gated linear unit": lambda net, z: net.node(
        "Mul", net.node("Sigmoid", z), net.linear("x", WIDTH, WIDTH)
    ),
    "gate of a mean": lambda net, z: net.node(
        "Mul", net.node("Sigmoid", net.node("ReduceMean", z, axes=[1])), z
    ),
}


def activated(spelling: Spelling) -> tuple[Net, str, str]:
    """A linear layer, its output z, and what the activation makes of it."""
    net = Net(gain=4.0)
    z = net.linear("x", WIDTH, WIDTH)
    made = spelling(net, z)
    net.node("MatMul", made, net.weight(WIDTH, WIDTH), out="y")
    return net, z, made


@pytest.mark.parametrize("name", RECTIFYING)
def test_a_rectifier_is_above_0_where_its_input_is(name: str) -> None:
    net, z, made = activated(RECTIFYING[name])
    io = (FLOAT, ("batch", WIDTH))
    model = net.model({"x": io}, {"y": io})
    assert list(rectified(read(model)).values()) == [made]
    x = np.random.default_rng(0).standard_normal((50, WIDTH)).astype(np.float32)
    found = run(model, {"x": x}, [z, made])
    on = found[z] > 0
    assert 0.2 < on.mean() < 0.8
    np.testing.assert_array_equal(found[made] > 0, on)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_rectifier(name: str) -> None:
    net, _, _ = activated(OTHERS[name])
    io = (FLOAT, ("batch", WIDTH))
    assert rectified(read(net.model({"x": io}, {"y": io}))) == {}


def test_a_gated_unit_of_silu_has_one() -> None:
    """Of SwiGLU the half that opens itself, not its product with the other half."""
    net = Net()
    z = net.linear("x", WIDTH, WIDTH)
    gate = silu(net, z)
    net.node("Mul", gate, net.linear("x", WIDTH, WIDTH), out="y")
    io = (FLOAT, ("batch", WIDTH))
    assert list(rectified(read(net.model({"x": io}, {"y": io}))).values()) == [gate]
