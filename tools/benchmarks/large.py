"""What a model above 2 GB needs: peaks of memory of inspect, optimize and verify, each a process.

    python -m blockfold.tools.benchmarks.large [--blocks 12] [-- OPTIONS OF OPTIMIZE]

Makes transformer blocks with random weights, written matrix by matrix into external files, in a
temporary folder. A norm ends each branch and makes most of them small, so that blocks are near the
identity and a few can go. The MLPs are wide and the stream is narrow: what is measured is the size
of the model, not that of the maps. What comes out is loaded from another folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HEADS = 8
TOKENS = 4
CLASSES = 10
LOUD, QUIET = 1.0, 0.05
"""Sizes of branches beside the stream: of every fourth block and of the others."""

GIGA = 2**30


class Writer:
    """A model whose large weights go to external files as they are made."""

    def __init__(self, folder: Path, shards: int, seed: int = 0) -> None:
        self.folder, self.shards = folder, shards
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)
        self._scope = ""

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        made = f"{self._scope}/{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{made}_out"], made, **attributes))
        return f"{made}_out"

    def constant(self, array: NDArray[np.generic]) -> str:
        name = f"constant {len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, rows: int, columns: int) -> str:
        """Random (rows, columns), appended to one of the external files."""
        number = len(self.initializers)
        array = self._random.standard_normal((rows, columns), dtype=np.float32)
        array /= np.float32(np.sqrt(rows))
        location = f"weights.{number % self.shards}.bin"
        with (self.folder / location).open("ab") as file:
            offset = file.tell()
            file.write(array.data)
        tensor = onnx.TensorProto(name=f"weight {number}", data_type=TensorProto.FLOAT)
        tensor.dims.extend(array.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": location, "offset": offset, "length": array.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return tensor.name

    def norm(self, x: str, width: int, gain: float = 1.0) -> str:
        scale, zeros = np.full(width, gain, np.float32), np.zeros(width, np.float32)
        return self.node("LayerNormalization", x, self.constant(scale), self.constant(zeros))

    def block(self, x: str, width: int, hidden: int, number: int) -> str:
        """x + norm(attention(norm(x))), then x + norm(MLP(norm(x)))."""
        gain = QUIET if number % 4 else LOUD
        self._scope = f"/blocks.{number}"
        normed = self.norm(x, width)
        split = self.constant(np.array([0, 0, HEADS, width // HEADS], np.int64))
        query, key, value = (
            self.node(
                "Transpose",
                self.node("Reshape", self.node("MatMul", normed, self.weight(width, width)), split),
                perm=order,
            )
            for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        scale = self.constant(np.array((width / HEADS) ** -0.5, np.float32))
        scores = self.node("Mul", self.node("MatMul", query, key), scale)
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        joined = self.constant(np.array([0, 0, width], np.int64))
        rows = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        rows = self.node("MatMul", rows, self.weight(width, width))
        x = self.node("Add", x, self.norm(rows, width, gain))
        wide = self.node("MatMul", self.norm(x, width), self.weight(width, hidden))
        rows = self.node("MatMul", self.node("Relu", wide), self.weight(hidden, width))
        return self.node("Add", x, self.norm(rows, width, gain))

    def write(self, blocks: int, width: int, hidden: int) -> Path:
        x = "x"
        for number in range(blocks):
            x = self.block(x, width, hidden, number)
        self._scope = "/head"
        pooled = self.node("ReduceMean", x, axes=[1], keepdims=0)
        logits = self.node("MatMul", pooled, self.weight(width, CLASSES))
        self.nodes[-1].output[0] = logits = "logits"
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name, dims in (("x", ("batch", TOKENS, width)), (logits, ("batch", CLASSES)))
        ]
        graph = helper.make_graph(self.nodes, "large", ends[:1], ends[1:], self.initializers)
        opsets = [helper.make_opsetid("", 17)]
        path = self.folder / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


ALONE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs Python from a small process: a child's peak begins at the size of its parent."""


def run_alone(arguments: Sequence[str]) -> tuple[int, int, float]:
    """Run Python in a process of its own: exit code, peak of its memory in bytes, seconds."""
    begin = time.perf_counter()
    told = subprocess.run(
        [sys.executable, "-S", "-c", ALONE, *arguments], check=True, stdout=subprocess.PIPE
    )
    code, peak = map(int, told.stdout.split())
    return code, peak * (1 if sys.platform == "darwin" else 1024), time.perf_counter() - begin


LOAD = """
import sys
from blockfold.calibration.runtime import load
load().InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""


@click.command()
@click.option("--blocks", default=12)
@click.option("--width", default=512)
@click.option("--hidden", default=45056)
@click.option("--samples", default=64)
@click.option("--shards", default=3, help="Number of external files.")
@click.argument("options", nargs=-1)
def main(
    blocks: int, width: int, hidden: int, samples: int, shards: int, options: Sequence[str]
) -> None:
    """Measure the memory that a large model takes. OPTIONS go to optimize."""
    with tempfile.TemporaryDirectory(prefix="blockfold-large-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        model = Writer(folder / "in", shards).write(blocks, width, hidden)
        held = sum(file.stat().st_size for file in (folder / "in").iterdir())
        data, small = folder / "samples.npz", folder / "out" / "small.onnx"
        rng = np.random.default_rng(1)
        np.savez(data, x=rng.standard_normal((samples, TOKENS, width), dtype=np.float32))
        click.echo(
            f"model: {blocks} blocks, {width} / {hidden}, {held / GIGA:.2f} GiB in {shards} files\n"
        )
        click.echo("| step | exit code | peak, GiB | peak / model | seconds |")
        click.echo("| --- " * 5 + "|")
        common = ["--data", str(data), "--provider", "cpu", "--threads", "1"]
        steps = {
            "load in onnxruntime": ["-c", LOAD, str(model)],
            "inspect without data": ["-m", "blockfold", "inspect", str(model), "--json"],
            "optimize": [
                *("-m", "blockfold", "optimize", str(model), "-o", str(small), "--json"),
                *common,
                *(options or ("--remove", str(blocks // 4))),
            ],
            "verify": ["-m", "blockfold", "verify", str(model), str(small), "--json", *common],
            "load the result": ["-c", LOAD, str(small)],
        }
        os.chdir("/")
        for step, arguments in steps.items():
            code, peak, seconds = run_alone(arguments)
            cells = str(code), f"{peak / GIGA:.2f}", f"{peak / held:.2f}", f"{seconds:.0f}"
            click.echo(f"| {step} | " + " | ".join(cells) + " |")
        if small.exists():
            after = sum(
                f.stat().st_size for f in small.parent.iterdir() if f.suffix in (".onnx", ".data")
            )
            click.echo(f"\nresult: {after / GIGA:.2f} GiB")


if __name__ == "__main__":
    main()
