"""Networks made to mislead the analysis; tests say for each what is there and what is not.

The stream after block i is `h{i}` (`e{i}` in an encoder), the result `y`. Tokens are
(batch, seq, D) with names for the first two: nothing but the dataflow can prove a length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from .networks import FLOAT, INT64, Dims, Net

D = 8
TOKENS_IO = (FLOAT, ("batch", "seq", D))
IDS_IO = (INT64, ("batch", "seq"))
Inputs = Mapping[str, tuple[int, Dims]]


def ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def scalar(number: float) -> NDArray[np.float32]:
    return np.array(number, np.float32)


def finish(net: Net, h: str, inputs: Inputs | None = None, width: int = D) -> onnx.ModelProto:
    """A last matrix to `y` (batch, seq, 3)."""
    net.scope = "/head"
    net.node("MatMul", h, net.weight(width, 3), out="y")
    return net.model(inputs or {"x": TOKENS_IO}, {"y": (FLOAT, ("batch", "length", 3))})


def block(net: Net, h: str, name: str, out: str) -> str:
    """h + MLP(norm(h)), all of it in the scope `name`."""
    net.scope = f"/{name}"
    return net.node("Add", h, net.mlp(net.norm(h, D), D), out=out)


def blocks(net: Net, h: str, count: int, first: int = 0) -> str:
    for i in range(first, first + count):
        h = block(net, h, f"blocks.{i}", f"h{i}")
    return h


def attend(net: Net, x: str, states: str, bias: str | None = None) -> str:
    """Single-head attention of x to `states`, which is x itself or another stream."""
    query, key, value = (net.linear(source, D, D) for source in (x, states, states))
    scores = net.node("MatMul", query, net.node("Transpose", key, perm=[0, 2, 1]))
    if bias is not None:
        scores = net.node("Add", scores, bias)
    return net.linear(net.node("MatMul", net.node("Softmax", scores, axis=-1), value), D, D)


def layer(net: Net, h: str, name: str, out: str, states: str = "", bias: str | None = None) -> str:
    """Pre-norm self-attention, attention to `states` where there are any, and an MLP."""
    net.scope = f"/{name}/attention"
    normed = net.norm(h, D)
    h = net.node("Add", h, attend(net, normed, normed, bias), out=f"{out}.a")
    if states:
        net.scope = f"/{name}/cross"
        h = net.node("Add", h, attend(net, net.norm(h, D), states), out=f"{out}.c")
    net.scope = f"/{name}/mlp"
    return net.node("Add", h, net.mlp(net.norm(h, D), D), out=out)


def pieces(net: Net, x: str, count: int, axis: int, prefix: str) -> list[str]:
    """x cut in equal pieces."""
    made = [f"{prefix}{i}" for i in range(count)]
    net.nodes.append(helper.make_node("Split", [x], made, f"{net.scope}/Split_{prefix}", axis=axis))
    return made


def interleaved(join: str = "Add") -> onnx.ModelProto:
    """Two chains of residual MLPs, x and z, whose nodes take turns; they meet at the end."""
    net = Net()
    h, e = blocks(net, "x", 3), "z"
    own = len(net.nodes)
    for i in range(3):
        e = block(net, e, f"others.{i}", f"e{i}")
    pairs = zip(net.nodes[:own], net.nodes[own:], strict=True)
    net.nodes = [node for pair in pairs for node in pair]
    net.scope = "/join"
    axis = {"axis": -1} if join == "Concat" else {}
    joined = net.node(join, h, e, out="joined", **axis)
    io = {"x": TOKENS_IO, "z": TOKENS_IO}
    return finish(net, joined, io, 2 * D if join == "Concat" else D)


def exchange(rounds: int = 2) -> onnx.ModelProto:
    """Two streams each of which attends to the other in every round."""
    net = Net()
    h, e = "x", "z"
    for i in range(rounds):
        net.scope = f"/round.{i}"
        mine, theirs = net.norm(h, D), net.norm(e, D)
        h, e = (
            net.node("Add", h, attend(net, mine, theirs), out=f"h{i}"),
            net.node("Add", e, attend(net, theirs, mine), out=f"e{i}"),
        )
    net.scope = "/join"
    joined = net.node("Add", h, e, out="joined")
    return finish(net, blocks(net, joined, 2, rounds), {"x": TOKENS_IO, "z": TOKENS_IO})


def inception() -> onnx.ModelProto:
    """x (batch, 6, 6, 6): three modules of three branches, concatenated to 6 channels again."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        pooled = net.node("MaxPool", h, kernel_shape=[3, 3], pads=[1] * 4)
        branches = [net.conv(h, 6, 2, 1), net.conv(net.conv(h, 6, 3, 1), 3, 2)]
        branches.append(net.conv(pooled, 6, 2, 1))
        h = net.node("Relu", net.node("Concat", *branches, axis=1, out=f"z{i}"), out=f"h{i}")
    net.node("Conv", h, net.weight(3, 6, 1, 1), out="y")
    return net.model({"x": (FLOAT, ("batch", 6, 6, 6))}, {"y": (FLOAT, ("batch", 3, 6, 6))})


def parallel(form: str = "Sum") -> onnx.ModelProto:
    """Attention and MLP side by side on one norm, summed with the stream in one of three ways."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        normed = net.norm(h, D)
        mixed, mapped = attend(net, normed, normed), net.mlp(normed, D)
        if form == "Sum":
            h = net.node("Sum", h, mixed, mapped, out=f"h{i}")
        elif form == "branches first":
            h = net.node("Add", net.node("Add", mixed, mapped), h, out=f"h{i}")
        else:
            h = net.node("Add", net.node("Add", h, mixed), mapped, out=f"h{i}")
    return finish(net, h)


def channel_split() -> onnx.ModelProto:
    """Half of the channels pass by, half go through a map; then the halves change places."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        kept, mapped = pieces(net, h, 2, 2, f"half{i}.")
        mapped = net.linear(net.node("Relu", net.linear(mapped, D // 2, D)), D, D // 2)
        h = net.node("Concat", mapped, kept, axis=-1, out=f"h{i}")
    return finish(net, h)


def unet(depth: int = 1) -> onnx.ModelProto:
    """Blocks inside `depth` nested skips by Concat, and two blocks before and after them all."""
    net = Net()
    h = blocks(net, "x", 2)
    skips = []
    at = 2
    for _ in range(depth):
        skips.append(h)
        h = blocks(net, h, 1, at)
        at += 1
    h = blocks(net, h, 2, at)
    at += 2
    for level, skip in enumerate(reversed(skips)):
        net.scope = f"/up.{level}"
        h = net.linear(net.node("Concat", h, skip, axis=-1), 2 * D, D)
        if level + 1 < depth:
            h = blocks(net, h, 1, at)
            at += 1
    return finish(net, blocks(net, h, 2, at))


def gated(where: str = "all") -> onnx.ModelProto:
    """Residual MLPs times a sigmoid gate: one of x for all blocks, or each block's own."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        if i == 0 or where == "own":
            gate = net.node("Sigmoid", net.linear(h, D, D))
        h = net.node("Add", h, net.node("Mul", net.mlp(net.norm(h, D), D), gate), out=f"h{i}")
    return finish(net, h)


def padded() -> onnx.ModelProto:
    """Attention blocks whose padding mask is a comparison of the stream with zero."""
    net = Net()
    net.scope = "/mask"
    size = net.node("ReduceSum", net.node("Abs", "x"), net.constant(ints(-1)), keepdims=0)
    empty = net.node("Not", net.node("Greater", size, net.constant(scalar(0))))
    bias = net.node("Mul", net.node("Cast", empty, to=FLOAT), net.constant(scalar(-1e9)))
    bias = net.node("Unsqueeze", bias, net.constant(ints(1)), out="bias")
    h = "x"
    for i in range(2):
        h = layer(net, h, f"layer.{i}", f"h{i}", bias=bias)
    return finish(net, h)


def albert(count: int = 4) -> onnx.ModelProto:
    """One block's weights used over and over."""
    net = Net()
    h, held = "x", None
    for i in range(count):
        before = len(net.nodes)
        h = block(net, h, f"blocks.{i}", f"h{i}")
        mine = [name for node in net.nodes[before:] for name in node.input if name[0] == "w"]
        held = held or mine
        for node in net.nodes[before:]:
            node.input[:] = [dict(zip(mine, held, strict=True)).get(n, n) for n in node.input]
    net.initializers = [t for t in net.initializers if t.name in (held or [])]
    return finish(net, h)


def conditioned(how: str = "added") -> onnx.ModelProto:
    """Blocks that all read one vector t (batch, 1, D), as it is or after an MLP."""
    net = Net()
    h, vector = "x", "t"
    if "as it is" not in how:
        net.scope = "/condition"
        vector = net.mlp("t", D)
    for i in range(3):
        net.scope = f"/blocks.{i}"
        if how == "scaling the branch":
            scale = net.linear(vector, D, D)
            branch = net.mlp(net.node("Mul", net.norm(h, D), scale), D)
        elif how == "added to the branch as it is":
            branch = net.node("Add", net.mlp(net.norm(h, D), D), vector)
        else:
            h = net.node("Add", h, vector, out=f"s{i}")
            branch = net.mlp(net.norm(h, D), D)
        h = net.node("Add", h, branch, out=f"h{i}")
    return finish(net, h, {"t": (FLOAT, ("batch", 1, D)), "x": TOKENS_IO})


def encoder_decoder(encoder: int = 2, decoder: int = 2) -> onnx.ModelProto:
    """Embedded source words, and target words whose layers attend to the encoder's last states."""
    net = Net()
    net.scope = "/embeddings"
    table = net.weight(30, D)
    e = net.node("Gather", table, "source_ids", out="source")
    h = net.node("Gather", table, "target_ids", out="target")
    for i in range(encoder):
        e = layer(net, e, f"encoder.{i}", f"e{i}")
    net.scope = "/encoder.norm"
    e = net.norm(e, D, out="states")
    for i in range(decoder):
        h = layer(net, h, f"decoder.{i}", f"h{i}", states=e)
    ids = (INT64, ("batch", "seq"))
    return finish(net, h, {"source_ids": ids, "target_ids": (INT64, ("batch", "target_seq"))})


def embeddings(first: str = "words") -> onnx.ModelProto:
    """Words, places and kinds of tokens, each looked up by an input of its own, then layers."""
    net = Net()
    net.scope = "/embeddings"
    tables = {"words": 30, "places": 31, "kinds": 32}
    order = [first, *(name for name in tables if name != first)]
    for name in order:
        net.node("Gather", net.weight(tables[name], D), f"{name}_ids", out=name)
    h = net.norm(net.node("Add", net.node("Add", "words", "kinds"), "places"), D, out="embedded")
    for i in range(2):
        h = layer(net, h, f"layer.{i}", f"h{i}")
    return finish(net, h, {f"{name}_ids": IDS_IO for name in tables})


def half_precision() -> onnx.ModelProto:
    """Two blocks in float32, two in float16, two in float32 again."""
    net = Net()
    h = blocks(net, "x", 2)
    h = net.node("Cast", h, to=TensorProto.FLOAT16, out="narrow")
    count = len(net.initializers)
    h = blocks(net, h, 2, 2)
    for tensor in net.initializers[count:]:
        narrow = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, tensor.name))
    h = net.node("Cast", h, to=FLOAT, out="wide")
    return finish(net, blocks(net, h, 2, 4))


def idle() -> onnx.ModelProto:
    """Blocks with Dropout and Identity after every step, on the stream and in the branch."""
    net = Net()

    def drop(x: str) -> str:
        made = f"dropped{len(net.nodes)}"
        net.nodes.append(helper.make_node("Dropout", [x], [made, f"{made}.mask"], f"drop_{made}"))
        return net.node("Identity", made)

    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        inner = drop(net.node("Relu", net.linear(drop(net.norm(drop(h), D)), D, 2 * D)))
        h = drop(net.node("Add", h, drop(net.linear(inner, 2 * D, D)), out=f"h{i}"))
    return finish(net, h)


def residual(form: str) -> onnx.ModelProto:
    """Three blocks whose sum is written in one of several ways, with a norm before or after."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        after = form in ("norm after", "batch norm after")
        branch = net.mlp(h if after else net.norm(h, D), D)
        both = (branch, h) if form == "branch first" else (h, branch)
        h = net.node("Sum" if form == "sum of two" else "Add", *both, out=f"h{i}")
        if form == "norm after":
            h = net.norm(h, D, out=f"n{i}")
        elif form == "batch norm after":
            turned = net.node("Transpose", h, perm=[0, 2, 1])
            rows = [net.constant(net.rng.random(D).astype(np.float32) + 0.5) for _ in range(4)]
            normal = net.node("BatchNormalization", turned, *rows)
            h = net.node("Relu", net.node("Transpose", normal, perm=[0, 2, 1]), out=f"n{i}")
    return finish(net, h)


ADVERSARIES: dict[str, Callable[[], onnx.ModelProto]] = {
    "interleaved": interleaved,
    "joined by Concat": lambda: interleaved("Concat"),
    "exchange": exchange,
    "inception": inception,
    "parallel": parallel,
    "channel_split": channel_split,
    "unet": unet,
    "nested unet": lambda: unet(3),
    "gated": gated,
    "padded": padded,
    "albert": albert,
    "conditioned": conditioned,
    "encoder_decoder": encoder_decoder,
    "embeddings": embeddings,
    "half_precision": half_precision,
    "idle": idle,
    "batch norm after": lambda: residual("batch norm after"),
}
"""One of each kind, for tests of what holds for any network."""
