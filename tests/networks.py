"""Tiny networks with planted truth, and a comparison of outputs that has no default tolerance.

All are seeded, small enough to run in a millisecond, and named so that tests can speak of a value:
the stream after block i is `h{i}`, the nodes of block i are called `/blocks.{i}/...`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from blockfold.calibration.runtime import load

Arrays = dict[str, NDArray[Any]]
Dims = Sequence[int | str]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
TOKENS = 12
CLASSES = 5


class Net:
    """A graph under construction: `node` appends an operation, `weight` an initializer."""

    def __init__(self, seed: int = 0, gain: float = 1.6) -> None:
        self.rng = np.random.default_rng(seed)
        self.gain = gain
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.scope = ""

    def node(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node with one output, whose name is returned."""
        made = out or f"v{len(self.nodes)}"
        name = f"{self.scope}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [made], name, **attributes))
        return made

    def constant(self, array: NDArray[Any], name: str | None = None) -> str:
        made = name or f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, made))
        return made

    def weight(self, *dims: int) -> str:
        """Random, so scaled that its product keeps the size of its input times `gain`."""
        fan_in = dims[0] if len(dims) == 2 else int(np.prod(dims[1:]))
        scale = self.gain / np.sqrt(fan_in)
        return self.constant((self.rng.standard_normal(dims) * scale).astype(np.float32))

    def bias(self, d: int) -> str:
        return self.constant((self.rng.standard_normal(d) * 0.3).astype(np.float32))

    def linear(self, x: str, d: int, out: int) -> str:
        """x W + b as MatMul and Add."""
        return self.node("Add", self.node("MatMul", x, self.weight(d, out)), self.bias(out))

    def norm(self, x: str, d: int, out: str | None = None) -> str:
        ones, zeros = np.ones(d, np.float32), np.zeros(d, np.float32)
        scale, shift = self.constant(ones), self.constant(zeros)
        return self.node("LayerNormalization", x, scale, shift, out=out, axis=-1)

    def conv(self, x: str, channels: int, out: int, kernel: int = 3, stride: int = 1) -> str:
        weight, bias = self.weight(out, channels, kernel, kernel), self.bias(out)
        pads = [kernel // 2] * 4
        sizes, strides = [kernel] * 2, [stride] * 2
        return self.node("Conv", x, weight, bias, kernel_shape=sizes, pads=pads, strides=strides)

    def mlp(self, x: str, d: int) -> str:
        return self.linear(self.node("Relu", self.linear(x, d, 2 * d)), 2 * d, d)

    def affine(self, x: str, d: int) -> str:
        """As many weights as `mlp`, nothing between its two products, and about x in size."""
        gain, self.gain = self.gain, 1.0
        made = self.linear(self.linear(x, d, 2 * d), 2 * d, d)
        self.gain = gain
        return made

    def head(self, x: str, d: int, *, axes: Sequence[int] = (1,), keep: str = "pooled") -> None:
        """Mean over `axes` and a Gemm to `logits`, each class about as frequent as another."""
        self.scope = "/head"
        if axes:
            x = self.node("ReduceMean", x, out=keep, axes=list(axes), keepdims=0)
        bias = self.constant(np.zeros(CLASSES, np.float32), "head_bias")
        self.node("Gemm", x, self.weight(d, CLASSES), bias, out="logits")

    def model(
        self,
        inputs: Mapping[str, tuple[int, Dims]],
        outputs: Mapping[str, tuple[int, Dims]],
        *,
        opset: int = 17,
        ir: int = 8,
    ) -> onnx.ModelProto:
        """The finished model; `inputs` and `outputs` give TensorProto types and dimensions."""
        feeds, made = (
            [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in io.items()]
            for io in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, "tiny", feeds, made, self.initializers)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        onnx.checker.check_model(model, full_check=True)
        for tensor in model.graph.initializer:
            if tensor.name == "head_bias":  # classes of like frequency, so that damage shows
                logits = run(model, samples(model, 64, seed=99))["logits"]
                tensor.CopyFrom(numpy_helper.from_array(-logits.mean(0), tensor.name))
        return model


LOGITS = {"logits": (FLOAT, ("batch", CLASSES))}


def residual_mlp(
    blocks: int = 4, d: int = 8, affine: Collection[int] = (), *, seed: int = 0, ir: int = 8
) -> onnx.ModelProto:
    """x (batch, 12, d) -> pre-norm residual MLPs -> logits.

    Blocks in `affine` are x + (x W + b) V + c.
    """
    net = Net(seed)
    h = "x"
    for i in range(blocks):
        net.scope = f"/blocks.{i}"
        branch = net.affine(h, d) if i in affine else net.mlp(net.norm(h, d), d)
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(h, d)
    return net.model({"x": (FLOAT, ("batch", TOKENS, d))}, LOGITS, ir=ir)


def residual_cnn(
    widths: Sequence[int] = (6,),
    blocks: int = 3,
    affine: Collection[int] = (),
    *,
    seed: int = 0,
    downsampling: bool = False,
) -> onnx.ModelProto:
    """x (batch, 3, 6, 6) -> stem -> residual blocks, ReLU after the sum -> logits.

    Each further width is a stage that begins with a convolution of stride 2, or where
    `downsampling` with a block of stride 2, its shortcut a convolution, too. Blocks in `affine` are
    relu(x + two 1x1 convolutions of x in a row); those of stride 2 are one 3x3 convolution, and
    their shortcut.
    """
    net = Net(seed)
    h, channels, at = "x", 3, 0
    for stage, width in enumerate(widths):
        net.scope = f"/stem{stage}"
        if stage == 0 or not downsampling:
            h = net.node("Relu", net.conv(h, channels, width, stride=1 + (stage > 0)))
            channels = width
        for _ in range(blocks):
            net.scope = f"/blocks.{at}"
            if channels != width:
                branch = net.conv(h, channels, width, stride=2)
                if at not in affine:
                    branch = net.conv(net.node("Relu", branch), width, width)
                h = net.conv(h, channels, width, kernel=1, stride=2)
                channels = width
            elif at in affine:
                wide = net.conv(h, width, 3 * width, kernel=1)
                branch = net.conv(wide, 3 * width, width, kernel=1)
            else:
                branch = net.conv(net.node("Relu", net.conv(h, width, width)), width, width)
            h = net.node("Relu", net.node("Add", h, branch, out=f"z{at}"), out=f"h{at}")
            at += 1
    net.head(h, channels, axes=(2, 3))
    return net.model({"x": (FLOAT, ("batch", 3, 6, 6))}, LOGITS)


def densenet_like(layers: int = 4, d: int = 6) -> onnx.ModelProto:
    """Every layer reads all outputs before it: nothing inside is a cut."""
    net = Net()
    seen = ["x"]
    for i in range(layers):
        net.scope = f"/layers.{i}"
        x = net.node("Concat", *seen, axis=-1) if len(seen) > 1 else "x"
        made = net.node("Relu", net.linear(x, d * len(seen), d))
        seen.append(made)
    net.head(net.node("Concat", *seen, out="all", axis=-1), d * len(seen))
    return net.model({"x": (FLOAT, ("batch", TOKENS, d))}, LOGITS)


def masked_encoder(
    blocks: int = 2, d: int = 8, *, pooled: bool = True, words: int = 30, seed: int = 0
) -> onnx.ModelProto:
    """input_ids and attention_mask (batch, seq) -> post-norm encoder with absolute positions.

    The output is `pooled` (batch, 4), from the first token, or `last_hidden_state`.
    """
    net = Net(seed)
    number, ints = net.constant, np.int64
    net.scope = "/embeddings"
    h = net.node("Gather", net.weight(words, d), "input_ids", out="embedded")
    dims = net.node("Shape", "input_ids")
    length = net.node("Gather", dims, number(np.array(1, ints)))
    ends = number(np.array(0, ints)), length, number(np.array(1, ints))
    places = net.node("Gather", net.weight(64, d), net.node("Range", *ends))
    h = net.norm(net.node("Add", h, places), d, out="n0")
    net.scope = "/mask"
    kept = net.node("Cast", "attention_mask", to=FLOAT)
    wide = net.node("Unsqueeze", kept, number(np.array([1], ints)))
    hidden = net.node("Sub", number(np.array(1, np.float32)), wide)
    bias = net.node("Mul", hidden, number(np.array(-1e9, np.float32)))
    for i in range(blocks):
        net.scope = f"/layer.{i}/attention"
        mixed = attend(net, h, d, bias)
        h = net.norm(net.node("Add", h, mixed, out=f"a{i}"), d)
        net.scope = f"/layer.{i}/mlp"
        h = net.node("Add", h, net.mlp(h, d), out=f"m{i}")
        h = net.norm(h, d, out=f"h{i}" if pooled or i + 1 < blocks else "last_hidden_state")
    tokens = dict.fromkeys(("input_ids", "attention_mask"), (INT64, ("batch", "seq")))
    if not pooled:
        return net.model(tokens, {"last_hidden_state": (FLOAT, ("batch", "seq", d))})
    net.scope = "/pooler"
    first = net.node("Gather", h, number(np.array(0, ints)), axis=1)
    net.node("Gemm", first, net.weight(d, CLASSES), net.bias(CLASSES), out="pooled")
    return net.model(tokens, {"pooled": (FLOAT, ("batch", CLASSES))})


def attend(net: Net, x: str, d: int, bias: str) -> str:
    """Single-head self-attention with an additive bias."""
    query, key, value = (net.linear(x, d, d) for _ in range(3))
    turned = net.node("Transpose", key, perm=[0, 2, 1])
    scores = net.node("Add", net.node("MatMul", query, turned), bias)
    return net.linear(net.node("MatMul", net.node("Softmax", scores, axis=-1), value), d, d)


def inner_output(d: int = 8) -> onnx.ModelProto:
    """Three residual MLPs; `inner`, made in the middle of the second, is a graph output too."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        wide = net.linear(net.norm(h, d), d, 2 * d)
        wide = net.node("Relu", wide, out="inner" if i == 1 else None)
        h = net.node("Add", h, net.linear(wide, 2 * d, d), out=f"h{i}")
    net.head(h, d)
    outputs = {"inner": (FLOAT, ("batch", TOKENS, 2 * d)), **LOGITS}
    return net.model({"x": (FLOAT, ("batch", TOKENS, d))}, outputs)


def long_skip(d: int = 8) -> onnx.ModelProto:
    """Six residual MLPs; the stream after the second is added again after the fifth."""
    net = Net()
    h = "x"
    for i in range(6):
        net.scope = f"/blocks.{i}"
        h = net.node("Add", h, net.mlp(net.norm(h, d), d), out=f"h{i}")
        if i == 4:
            h = net.node("Add", h, "h1", out="joined")
    net.head(h, d)
    return net.model({"x": (FLOAT, ("batch", TOKENS, d))}, LOGITS)


def shared_mask(
    d: int = 8, *, measured: str = "norm", gated_by: str = "x", affine: Collection[int] = ()
) -> onnx.ModelProto:
    """Attention blocks on x (batch, seq, d); the first makes what all of them read.

    That is a causal bias from the length of an inner value (its norm, or a "product" that nothing
    else reads), and a 0/1 mask of tokens from a comparison on x, or on its "norm".
    """
    net = Net()
    number, ints = net.constant, np.int64
    net.scope = "/blocks.0"
    normed = net.norm("x", d, out="normed")
    inner = normed if measured == "norm" else net.node("MatMul", normed, net.weight(d, d))
    size = net.node("Gather", net.node("Shape", inner, out="dims"), number(np.array([1], ints)))
    square = net.node("Concat", size, size, axis=0)
    negative = numpy_helper.from_array(np.array([-1e9], np.float32))
    filled = net.node("ConstantOfShape", square, value=negative)
    causal = net.node("Trilu", filled, number(np.array(1, ints)), upper=1, out="causal")
    told = "x" if gated_by == "x" else normed
    first = net.node("Slice", told, *(number(np.array([k], ints)) for k in (0, 1, 2)))
    positive = net.node("Greater", first, number(np.array(0, np.float32)))
    gate = net.node("Cast", positive, to=FLOAT, out="gate")
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        if i in affine:
            branch = net.affine(h, d)
        else:
            source = normed if i == 0 else net.norm(h, d)
            branch = net.node("Mul", attend(net, source, d, causal), gate)
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(h, d)
    return net.model({"x": (FLOAT, ("batch", "seq", d))}, LOGITS)


def captured_stream(d: int = 8, affine: Collection[int] = ()) -> onnx.ModelProto:
    """Three residual MLPs; an If after the second reads the stream in both its bodies."""
    net = Net()
    h = "x"
    for i in range(3):
        net.scope = f"/blocks.{i}"
        branch = net.affine(h, d) if i in affine else net.mlp(net.norm(h, d), d)
        h = net.node("Add", h, branch, out=f"h{i}")
        if i == 1:
            net.scope = "/choice"
            most = net.node("ReduceMax", "x", keepdims=0)
            huge = net.node("Greater", most, net.constant(np.array(1e6, np.float32)))
            made = helper.make_tensor_value_info("kept", FLOAT, None)
            bodies = {
                f"{name}_branch": helper.make_graph(
                    [helper.make_node(op, ["h1"], ["kept"])], name, [], [made]
                )
                for name, op in (("then", "Neg"), ("else", "Identity"))
            }
            h = net.node("If", huge, out="chosen", **bodies)
    net.head(h, d)
    return net.model({"x": (FLOAT, ("batch", TOKENS, d))}, LOGITS)


def two_streams(d: int = 8, encoder_blocks: int = 2) -> onnx.ModelProto:
    """A small encoder of `context` whose states every block of the stream `x` reads.

    The nodes of both stand interleaved, block by block.
    """
    net = Net()
    h, c = "x", "context"
    for i in range(encoder_blocks):
        net.scope = f"/encoder.{i}"
        c = net.node("Add", c, net.mlp(net.norm(c, d), d), out=f"c{i}")
        net.scope = f"/warm.{i}"
        h = net.node("Add", h, net.mlp(net.norm(h, d), d), out=f"p{i}")
    for i in range(3):
        net.scope = f"/blocks.{i}"
        both = net.node("Concat", net.norm(h, d), c, axis=-1)
        h = net.node("Add", h, net.mlp(net.linear(both, 2 * d, d), d), out=f"h{i}")
    net.head(h, d)
    io: tuple[int, Dims] = (FLOAT, ("batch", TOKENS, d))
    return net.model({"context": io, "x": io}, LOGITS)


def tabular(d: int = 8, blocks: int = 3, affine: Collection[int] = ()) -> onnx.ModelProto:
    """x (batch, d) -> residual blocks of BatchNormalization, Gemm, Relu, Gemm -> logits."""
    net = Net()
    h = "x"
    for i in range(blocks):
        net.scope = f"/blocks.{i}"
        rows = [(net.rng.random(d) + 0.5).astype(np.float32) for _ in range(4)]
        parts = [net.constant(row) for row in rows]
        branch = net.node("BatchNormalization", h, *parts)
        branch = net.node("Gemm", branch, net.weight(d, 2 * d), net.bias(2 * d))
        if i not in affine:
            branch = net.node("Relu", branch)
        branch = net.node("Gemm", branch, net.weight(2 * d, d), net.bias(d))
        h = net.node("Add", h, branch, out=f"h{i}")
    net.head(net.node("Relu", h), d, axes=())
    return net.model({"x": (FLOAT, ("batch", d))}, LOGITS)


def fixed_batch(model: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    """The same network for exactly `rows` rows."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in [*fixed.graph.input, *fixed.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = rows
    return fixed


def save_external(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write the model with every weight in a second file; returns its path."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    path = folder / name
    onnx.save_model(
        copy, path, save_as_external_data=True, location=f"{name}.weights", size_threshold=0
    )
    return path


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual_mlp": residual_mlp,
    "residual_cnn": lambda: residual_cnn((4, 6), 2),
    "densenet_like": densenet_like,
    "masked_encoder": masked_encoder,
    "last_hidden_state": lambda: masked_encoder(pooled=False),
    "inner_output": inner_output,
    "long_skip": long_skip,
    "shared_mask": shared_mask,
    "captured_stream": captured_stream,
    "two_streams": two_streams,
    "tabular": tabular,
    "fixed_batch": lambda: fixed_batch(residual_mlp(), 4),
}
"""One of each kind, for tests of what holds for any network."""


@cache
def built(name: str) -> onnx.ModelProto:
    """A network of BUILDERS, made once: not to be changed."""
    return BUILDERS[name]()


def samples(model: onnx.ModelProto, rows: int, *, length: int = 7, seed: int = 1) -> Arrays:
    """Random inputs: normal numbers around a mean of each sample's own, word ids, masks of ones."""
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dims = [rows, *(dim.dim_value or length for dim in tensor.shape.dim[1:])]
        if tensor.elem_type == FLOAT:
            means = [n if axis in (0, channels(dims)) else 1 for axis, n in enumerate(dims)]
            noise = rng.standard_normal(dims) * 0.3
            found[value.name] = (rng.standard_normal(means) + noise).astype(np.float32)
        elif "mask" in value.name:
            found[value.name] = np.ones(dims, np.int64)
        else:
            found[value.name] = rng.integers(0, 30, dims)
    return found


def channels(dims: Sequence[int]) -> int:
    """The axis of channels: 1 of feature maps, else the last."""
    return 1 if len(dims) == 4 else len(dims) - 1


def run(model: onnx.ModelProto | Path, feeds: Arrays, taps: Sequence[str] = ()) -> Arrays:
    """Outputs of a model, and any inner values, straight from onnxruntime."""
    onnxruntime = load()  # as the tool does: with its telemetry off
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source: bytes | str = str(model) if isinstance(model, Path) else b""
    if isinstance(model, onnx.ModelProto):
        tapped = onnx.ModelProto()
        tapped.CopyFrom(model)
        tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
        source = tapped.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def labelled(model: onnx.ModelProto, rows: int, **options: int) -> Arrays:
    """Random inputs with `labels`: the class that the model itself gives each sample."""
    feeds = samples(model, rows, **options)
    logits = next(iter(run(model, feeds).values()))
    return {**feeds, "labels": logits.argmax(-1)}


def compare(
    a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]], *, atol: float, rtol: float
) -> None:
    """Raise AssertionError unless b has a's arrays: keys, dtypes, shapes and finite numbers.

    A number may be off by atol + rtol times the largest magnitude of its array in a.
    """
    assert a.keys() == b.keys(), f"keys differ: {sorted(a)} and {sorted(b)}"
    assert a, "nothing to compare"
    for name, wanted in a.items():
        found = b[name]
        assert wanted.dtype == found.dtype, f"{name}: {wanted.dtype} and {found.dtype}"
        assert wanted.shape == found.shape, f"{name}: {wanted.shape} and {found.shape}"
        assert wanted.size, f"{name}: empty"
        x, y = wanted.astype(np.float64), found.astype(np.float64)
        assert np.isfinite(x).all(), f"{name}: NaN or Inf in the first"
        assert np.isfinite(y).all(), f"{name}: NaN or Inf in the second"
        worst, allowed = float(np.abs(x - y).max()), atol + rtol * float(np.abs(x).max())
        assert worst <= allowed, f"{name}: off by {worst:g}, {allowed:g} allowed"
