"""What is fuzzed: every reader of a file that somebody else may have written.

A target has seeds, a way to damage them, and `feed`, which takes one input down the road that the
tools take with such a file. `feed` may raise our own errors, nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from blockfold.calibration.solve import Solution
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.errors import Unsupported
from blockfold.ir.graph import Value
from blockfold.ir.onnx_dims import Lengths
from blockfold.ir.onnx_file import OnnxModel, read, write
from blockfold.ir.onnx_linear import as_weight, linear_into, matrix, offset
from blockfold.ir.onnx_unfuse import fuse, unfuse
from blockfold.ir.staging import staged
from blockfold.passes.evidence_file import evidence_bytes, read_evidence
from blockfold.passes.layout import anatomies, offered
from blockfold.passes.plan import (
    Plan,
    decision_of,
    read_plan,
    tensor_bytes,
    tensors_of,
    tensors_path,
)
from blockfold.passes.replacement import Replacement
from blockfold.passes.replay import replay
from blockfold.passes.score import read_out
from blockfold.passes.surrogates import Form
from blockfold.tests import networks
from blockfold.tests.networks import FLOAT, Arrays, Net
from blockfold.tests.planning import plan_of
from blockfold.tools.surveying import survey

from . import mutate


@dataclass(frozen=True)
class Target:
    """`feed` is given an input and a folder of its own, whose parent holds a file it may not read.

    `name` is also what the input's file is called there.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    damage: mutate.Mutate
    feed: Callable[[bytes, Path], None]


# --- models


def _models() -> list[bytes]:
    protos = [
        networks.residual_mlp(2, 4),
        networks.residual_cnn((3, 4), 1),
        networks.masked_encoder(),
        networks.captured_stream(),
        networks.two_streams(),
        _fused(),
        _with_function(),
        _external(),
    ]
    return [proto.SerializeToString() for proto in protos]


def _fused(d: int = 4) -> onnx.ModelProto:
    """Residual sums inside fused operators, lengths asked by Shape, literals, metadata."""
    net, h = Net(), "x"
    for i in range(2):
        gamma, beta = (net.constant(np.full(d, v, np.float32)) for v in (1, 0))
        made = [f"n{i}", "", "", f"h{i}"]
        branch = net.mlp(h, d)
        node = helper.make_node("SkipLayerNormalization", [h, branch, gamma, beta], made)
        node.domain, node.name = "com.microsoft", f"/blocks.{i}/skip"
        net.nodes.append(node)
        dims = net.node("Shape", f"n{i}")
        h = net.node("Reshape", net.node("Gelu", f"n{i}"), dims)
        net.nodes[-2].domain = "com.microsoft"
    net.head(h, d)
    x = helper.make_tensor_value_info("x", FLOAT, ("batch", 12, d))
    logits = helper.make_tensor_value_info("logits", FLOAT, ("batch", networks.CLASSES))
    graph = helper.make_graph(net.nodes, "fused", [x], [logits], net.initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    key = "pkg.torch.onnx.name_scopes"
    for node in proto.graph.node:
        node.metadata_props.add(key=key, value="['', 'layers.0', 'layers.0.mlp', 'gelu']")
    return proto


def _with_function() -> onnx.ModelProto:
    """Residual blocks that are calls of a local function, which calls another."""
    proto = networks.residual_mlp(2, 4)
    for name, inner in (("twice", "once"), ("once", "")):
        node = helper.make_node(inner or "Relu", ["a"], ["m"], domain="own" if inner else "")
        more = helper.make_node("Add", ["m", "a"], ["b"])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        proto.functions.append(
            helper.make_function("own", name, ["a"], ["b"], [node, more], opsets)
        )
    proto.opset_import.append(helper.make_opsetid("own", 1))
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "twice", "own"
    return proto


def _external() -> onnx.ModelProto:
    """The first weights lie in files: where they should, behind a link, and above the folder."""
    proto = networks.residual_mlp(2, 4)
    matrices = [tensor for tensor in proto.graph.initializer if len(tensor.dims) == 2]
    for tensor, location in zip(matrices, ("weights", "weights"), strict=False):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "128")):
            tensor.external_data.add(key=key, value=value)
    return proto


def _feed_model(content: bytes, folder: Path) -> None:
    """Read, look into it as inspect does, take apart, put together, hash and write again."""
    for name in ("weights", "../secret"):
        if not (folder / name).exists():
            (folder / name).write_bytes(bytes(512))
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to("../secret")
    path = folder / "model"
    path.write_bytes(content)
    model = read(path)
    _look_into(model)
    assert len(model.sha256) == 64
    with staged(folder / "out.onnx") as room:
        write(model, room / "out.onnx")


def _look_into(model: OnnxModel) -> None:
    plain = unfuse(model)
    Lengths(plain)
    for node in plain.graph.nodes:
        for name in node.outputs:
            linear = linear_into(plain, name)
            if linear is not None:
                W = matrix(plain, linear)
                offset(plain, linear, W.shape[1])
                as_weight(plain, linear, W)
    fuse(model, plain)
    try:
        offered(plain.graph, anatomies(plain), None)
    except Unsupported:
        return


# --- data

INPUTS = (
    Value("ids", "int64", ("batch", "seq")),
    Value("mask", "int64", ("batch", "seq")),
    Value("x", "float32", ("batch", None)),
)


def _arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(0, 9, (5, 3)),
        "mask": np.ones((5, 3), np.int64),
        "x": rng.standard_normal((5, 3)).astype(np.float32),
        "labels": np.arange(5),
        "groups": np.array(["a", "a", "b", "c", "c"]),
    }


def _archives() -> list[bytes]:
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, allow_pickle=False, **_arrays())
    np.savez_compressed(packed, allow_pickle=False, **_arrays())
    return [plain.getvalue(), packed.getvalue()]


def _files() -> list[bytes]:
    found = []
    for array in (np.ones((5, 3), np.float32), np.asfortranarray(np.ones((5, 3)))):
        stream = io.BytesIO()
        np.save(stream, array)
        found.append(stream.getvalue())
    return found


def _feed_archive(content: bytes, folder: Path) -> None:
    path = folder / "npz"
    path.write_bytes(content)
    _use(path)


def _feed_file(content: bytes, folder: Path) -> None:
    raw = folder / "raw"
    if not raw.exists():
        raw.mkdir()
        for name in ("ids", "mask"):
            np.save(raw / f"{name}.npy", _arrays()[name])
    (raw / "x.npy").write_bytes(content)
    _use(raw)


def _use(path: Path) -> None:
    """Take all there is of the data, as a sweep does."""
    with open_data(path, INPUTS) as data:
        data.typical()
        splits = split(data.samples, groups=data.groups)
        for batch in data.batches(np.concatenate([splits.fit, splits.certify]), 2):
            assert all(np.isfinite(array).all() for array in batch.feeds.values())


# --- plans

FORMS: tuple[Form, ...] = (
    "affine",
    "folded",
    "affine + folded",
    "affine + context",
    "affine + folded + context",
    "identity",
)


@cache
def planned() -> tuple[OnnxModel, Plan, bytes]:
    """A model and a plan with every form of surrogate for tokens, as optimize would write it."""
    d = 4
    model = read(networks.residual_mlp(2 * len(FORMS), d))
    streams = anatomies(model)
    spans, _ = offered(model.graph, streams, None)
    blocks = {span.start: span for span in spans}
    chosen = [blocks[start] for start in sorted(blocks)][1::2]
    found = []
    for span, form in zip(chosen, FORMS, strict=True):
        linear = linear_into(model, span.entry) if "folded" in form else None
        rows = {
            "affine + context": 2 * d,
            "folded": 2 * d,
            "affine + folded": 3 * d,
            "affine + folded + context": 4 * d,
        }.get(form, d)
        solution = Solution(np.eye(rows, d) / 2, np.ones(d), 1e-4, 100, d, 2.0)
        known = None if form == "identity" else solution
        found.append(Replacement(span, known, 0.1, form, linear))
    tensors = tensor_bytes(tensors_of(found))
    plan = plan_of(model.sha256, [decision_of(r) for r in found], tensors, metric="cosine")
    return model, plan, tensors


def _plans() -> list[bytes]:
    return [planned()[1].model_dump_json().encode()]


def _tensors() -> list[bytes]:
    return [planned()[2]]


def _feed_plan(content: bytes, folder: Path) -> None:
    path = folder / "plan"
    path.write_bytes(content)
    tensors_path(path).write_bytes(planned()[2])
    _replay(path)


def _feed_tensors(content: bytes, folder: Path) -> None:
    path = folder / "plan"
    tensors_path(path).write_bytes(content)
    plan = json.loads(_plans()[0]) | {"tensors_sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(plan))
    _replay(path)


def _replay(path: Path) -> None:
    """As apply does; the hash of a plan is no signature, so whoever edits it can seal it again."""
    plan, tensors = read_plan(path)
    sealed = plan.model_copy(update={"sha256": plan.digest()})
    replay(planned()[0], sealed, tensors)


# --- statistics


@cache
def _surveyed() -> tuple[OnnxModel, bytes]:
    """A model and the statistics that `survey` gathers of it."""
    proto = networks.residual_mlp(2, 4)
    found = survey(proto, networks.labelled(proto, 24), threads=1, provider="cpu")
    return read(proto), evidence_bytes(found.evidence)


def _statistics() -> list[bytes]:
    return [_surveyed()[1]]


def _feed_statistics(content: bytes, folder: Path) -> None:
    """As inspect does."""
    path = folder / "statistics"
    path.write_bytes(content)
    model = _surveyed()[0]
    evidence, layout = read_evidence(path, model)
    read_out(layout, unfuse(model), evidence)


TARGETS = {
    target.name: target
    for target in (
        Target("model", _models, mutate.model, _feed_model),
        Target("npz", _archives, mutate.npz, _feed_archive),
        Target("npy", _files, mutate.npy, _feed_file),
        Target("plan", _plans, mutate.document, _feed_plan),
        Target("tensors", _tensors, mutate.tensors, _feed_tensors),
        Target("statistics", _statistics, mutate.statistics, _feed_statistics),
    )
}
