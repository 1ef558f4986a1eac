"""The decoder of the spellings written by hand with the operators of three generations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from blockfold.tests.networks import FLOAT, Net
from blockfold.tests.spellings import BLOCKS, CLASSES, HEADS, MICROSOFT


def by_hand(spelling: str, d: int = 8) -> onnx.ModelProto:
    """x (batch, seq, d) -> causal pre-norm blocks -> logits, with the same weights each time.

    "plain" spells everything out, "standard" has the operators of opset 23, "runtime" those that
    onnxruntime fuses: SkipLayerNormalization gives the stream as its fourth output.
    """
    net = Net(3, gain=1.0)
    head_dims = net.constant(np.array([0, 0, HEADS, d // HEADS]))

    def number(value: float) -> str:
        return net.constant(np.array(value, np.float32))

    def gain_and_shift() -> tuple[str, str]:
        return net.constant((net.rng.random(d) + 0.5).astype(np.float32)), net.bias(d)

    def norm(x: str, gain: str, shift: str) -> str:
        if spelling != "plain":
            return net.node("LayerNormalization", x, gain, shift, axis=-1, epsilon=1e-5)
        centred = net.node("Sub", x, net.node("ReduceMean", x, axes=[-1]))
        variance = net.node("ReduceMean", net.node("Mul", centred, centred), axes=[-1])
        spread = net.node("Sqrt", net.node("Add", variance, number(1e-5)))
        return net.node("Add", net.node("Mul", net.node("Div", centred, spread), gain), shift)

    def attention(query: str, key: str, value: str) -> str:
        inputs = (query, key, value)
        if spelling == "standard":
            return net.node(
                "Attention", *inputs, is_causal=1, q_num_heads=HEADS, kv_num_heads=HEADS
            )
        if spelling == "runtime":
            return net.node(
                "MultiHeadAttention", *inputs, num_heads=HEADS, unidirectional=1, domain=MICROSOFT
            )
        split = [net.node("Reshape", x, head_dims) for x in inputs]
        q, k, v = (net.node("Transpose", x, perm=[0, 2, 1, 3]) for x in split)
        products = net.node("MatMul", q, net.node("Transpose", k, perm=[0, 1, 3, 2]))
        length = net.node("Gather", net.node("Shape", "x"), net.constant(np.array([1])))
        square = net.node("Concat", length, length, axis=0)
        never = numpy_helper.from_array(np.array([-1e9], np.float32))
        filled = net.node("ConstantOfShape", square, value=never)
        causal = net.node("Trilu", filled, net.constant(np.array(1)), upper=1)
        scores = net.node("Add", net.node("Div", products, number((d / HEADS) ** 0.5)), causal)
        mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), v)
        together = net.node("Transpose", mixed, perm=[0, 2, 1, 3])
        return net.node("Reshape", together, net.constant(np.array([0, 0, d])))

    def gelu(x: str, bias: str) -> str:
        if spelling == "runtime":
            return net.node("BiasGelu", x, bias, domain=MICROSOFT)
        x = net.node("Add", x, bias)
        if spelling == "standard":
            return net.node("Gelu", x)
        share = net.node("Add", net.node("Erf", net.node("Div", x, number(2**0.5))), number(1))
        return net.node("Mul", net.node("Mul", x, share), number(0.5))

    def add_and_norm(stream: str, branch: str, name: str) -> str:
        bias, (gain, shift) = net.bias(d), gain_and_shift()
        if spelling != "runtime":
            total = net.node("Add", stream, net.node("Add", branch, bias), out=name)
            return norm(total, gain, shift)
        made = net.node(
            "SkipLayerNormalization", stream, branch, gain, shift, bias, domain=MICROSOFT
        )
        net.nodes[-1].output.extend(["", "", name])
        net.nodes[-1].attribute.append(helper.make_attribute("epsilon", 1e-5))
        return made

    stream, normed = "x", norm("x", *gain_and_shift())
    for i in range(BLOCKS):
        net.scope = f"/blocks.{i}"
        mixed = attention(*(net.linear(normed, d, d) for _ in range(3)))
        normed = add_and_norm(stream, net.node("MatMul", mixed, net.weight(d, d)), f"a{i}")
        wide = gelu(net.node("MatMul", normed, net.weight(d, 2 * d)), net.bias(2 * d))
        normed = add_and_norm(f"a{i}", net.node("MatMul", wide, net.weight(2 * d, d)), f"h{i}")
        stream = f"h{i}"
    net.scope = "/head"
    first = net.node("Gather", normed, net.constant(np.array(0)), axis=1)
    net.node("Gemm", first, net.weight(d, CLASSES), net.bias(CLASSES), out="logits")
    return assembled(net, {"x": ("batch", "seq", d)}, opset=23 if spelling == "standard" else 17)


def assembled(
    net: Net, inputs: Mapping[str, tuple[Any, ...]], *, opset: int = 17, kind: int = FLOAT
) -> onnx.ModelProto:
    """A model of the net's nodes, onnxruntime's operators among them, with output `logits`."""
    ends = [helper.make_tensor_value_info(name, kind, dims) for name, dims in inputs.items()]
    logits = helper.make_tensor_value_info("logits", FLOAT, ("batch", CLASSES))
    graph = helper.make_graph(net.nodes, "by hand", ends, [logits], net.initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
