"""How the cost of the analysis grows: `python -m blockfold.tools.benchmarks.analysis`.

Decoders of growing depth, written out node by node as tracing does, with cached keys and values,
are read, cut, and every unit and block is proved. Seconds per 1,000 nodes should not grow.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import onnx
from onnx import TensorProto, helper

from ...ir.blocks import anatomy
from ...ir.cuts import find_chains
from ...ir.onnx_view import view
from ...ir.spans import prove

Adder = Callable[..., onnx.NodeProto]
GLOBAL = frozenset({"two", "heads", "flat"})
DEPTHS = (40, 80, 160, 320, 640)
WIDTH = 8


def decoder(depth: int) -> onnx.ModelProto:
    """A decoder of `depth` blocks, 32 nodes each, with two cache inputs and outputs per block."""
    nodes: list[onnx.NodeProto] = []
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.standard_normal((16, WIDTH)),
        **{f"{w}.{i}": rng.standard_normal((WIDTH, WIDTH)) for i in range(depth) for w in "qkvoud"},
        "two": np.array(2.0),
        "heads": np.array([0, 0, 2, WIDTH // 2]),
        "flat": np.array([0, 0, WIDTH]),
    }
    nodes.append(helper.make_node("Gather", ["table", "ids"], ["x.0"]))
    for i in range(depth):
        nodes += _block(i)
    nodes.append(helper.make_node("MatMul", [f"x.{depth}", "u.0"], ["logits"]))
    cache = [f"{part}.{i}" for i in range(depth) for part in ("key", "value")]
    shapes = {"ids": (TensorProto.INT64, ["b", "s"])}
    feeds = [helper.make_tensor_value_info(n, *t) for n, t in shapes.items()]
    feeds += [_info(f"past.{name}", ["b", 2, "p", WIDTH // 2]) for name in cache]
    outputs = [_info("logits", ["b", "s", WIDTH])]
    outputs += [_info(f"present.{name}", ["b", 2, "t", WIDTH // 2]) for name in cache]
    initializers = [
        onnx.numpy_helper.from_array(
            w.astype(np.int64 if w.dtype.kind == "i" else np.float32), name
        )
        for name, w in weights.items()
    ]
    graph = helper.make_graph(nodes, "decoder", feeds, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def _info(name: str, dims: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def _block(i: int) -> Iterator[onnx.NodeProto]:
    def add(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        names = [name if name in GLOBAL else f"{name}.{i}" for name in inputs.split()]
        return helper.make_node(op, names, [f"{output}.{i}"], name=f"/h.{i}/{output}", **attributes)

    yield from _norm(add, "x", "n")
    for part in "qkv":
        yield add("MatMul", f"n {part}", f"{part}1")
        yield add("Reshape", f"{part}1 heads", f"{part}2")
        yield add("Transpose", f"{part}2", f"{part}3", perm=[0, 2, 1, 3])
    yield add("Concat", "past.key k3", "present.key", axis=2)
    yield add("Concat", "past.value v3", "present.value", axis=2)
    yield add("Transpose", "present.key", "kt", perm=[0, 1, 3, 2])
    yield add("MatMul", "q3 kt", "scores")
    yield add("Softmax", "scores", "weights")
    yield add("MatMul", "weights present.value", "mixed")
    yield add("Transpose", "mixed", "turned", perm=[0, 2, 1, 3])
    yield add("Reshape", "turned flat", "joined")
    yield add("MatMul", "joined o", "attended")
    yield add("Add", "x attended", "middle")
    yield from _norm(add, "middle", "m")
    yield add("MatMul", "m u", "up")
    yield add("Relu", "up", "active")
    yield add("MatMul", "active d", "down")
    yield helper.make_node("Add", [f"middle.{i}", f"down.{i}"], [f"x.{i + 1}"], name=f"/h.{i}/x")


def _norm(add: Adder, entry: str, exit_: str) -> Iterator[onnx.NodeProto]:
    """Root mean square normalisation, written out."""
    yield add("Pow", f"{entry} two", f"{exit_}-square")
    yield add("ReduceMean", f"{exit_}-square", f"{exit_}-mean", axes=[-1])
    yield add("Sqrt", f"{exit_}-mean", f"{exit_}-root")
    yield add("Div", f"{entry} {exit_}-root", exit_)


def main() -> None:
    click.echo(
        "| nodes | blocks | read s | cuts and blocks s | spans s | total s per 1,000 nodes |"
    )
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for depth in DEPTHS:
        model = decoder(depth)
        times = [time.perf_counter()]
        graph = view(model)
        times.append(time.perf_counter())
        streams = [anatomy(graph, chain) for chain in find_chains(graph)]
        times.append(time.perf_counter())
        for stream in streams:
            ends = [(unit.start, unit.stop) for unit in stream.units]
            for start, stop in ends + [(block.start, block.stop) for block in stream.blocks]:
                prove(graph, stream, start, stop)
        times.append(time.perf_counter())
        count = len(graph.nodes)
        blocks = sum(len(stream.blocks) for stream in streams)
        spent = " | ".join(f"{b - a:.2f}" for a, b in itertools.pairwise(times))
        total = (times[-1] - times[0]) / count * 1000
        click.echo(f"| {count} | {blocks} | {spent} | {total:.3f} |")


if __name__ == "__main__":
    main()
