"""One row of the support table: export, find the blocks, replace one, compare with torch.

The reference is torch itself: a hook puts the same affine map in the place of the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...calibration.runtime import Runner, choose_runtime
from ...calibration.solve import Solution
from ...ir.blocks import Anatomy, Block, anatomy
from ...ir.cuts import find_chains
from ...ir.graph import Graph
from ...ir.onnx_file import OnnxModel, read
from ...ir.spans import ObservedShapes, Refusal, prove
from ...passes.pipeline import ALL_PASSES, rewrite
from ...passes.replacement import Replacement
from .exporters import EXPORTERS, call, quiet
from .zoo import Inputs, Subject

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Swap:
    """One block replaced: the worst difference to torch over all sizes, or why it was refused.

    `error` is max |onnxruntime - torch| over max(1, max |torch|). `leftovers` are nodes and
    weights of the result that no output needs, zombies behind a Shape included.
    """

    block: str
    error: float | None = None
    leftovers: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def is_good(self) -> bool:
        return self.error is not None and self.error <= TOLERANCE and not self.leftovers


@dataclass(frozen=True)
class Row:
    """What became of one network through one exporter."""

    subject: str
    exporter: str
    expected: tuple[int, ...]
    found: tuple[int, ...] = ()
    swaps: tuple[Swap, ...] = ()
    failure: str = ""


def try_subject(subject: Subject, exporter: str, folder: Path) -> Row:
    """Export the subject into `folder` and try its first and its middle block."""
    module = subject.make()
    expected = subject.streams(module)
    counts = tuple(len(paths) for paths in expected)
    file = folder / f"{subject.key}-{exporter}.onnx"
    try:
        with quiet():
            EXPORTERS[exporter](subject, module, file)
    except Exception as error:  # an exporter may raise anything; the row says so
        return Row(subject.name, exporter, counts, failure=f"does not export: {_line(error)}")
    model = read(file)
    streams = [anatomy(model.graph, chain) for chain in find_chains(model.graph)]
    streams = [stream for stream in streams if stream.blocks]
    swaps = []
    for paths in expected:
        stream = next((s for s in streams if _is_called(s.blocks[0], paths[0])), None)
        if stream is None:
            continue
        for index in dict.fromkeys([0, len(paths) // 2]):
            swaps.append(_swap(subject, module, model, stream, index, paths[index]))
    found = tuple(len(stream.blocks) for stream in streams)
    return Row(subject.name, exporter, counts, found, tuple(swaps))


def _swap(
    subject: Subject, module: nn.Module, model: OnnxModel, stream: Anatomy, index: int, path: str
) -> Swap:
    """Replace block `index` of the stream in the file, and the module `path` in torch."""
    block = stream.blocks[index]
    if not _is_called(block, path):
        return Swap(block.name, refusal=f"is not {path}")
    observed = _observe(subject, model, stream)
    span = prove(model.graph, stream, block.start, block.stop, observed)
    if isinstance(span, Refusal):
        return Swap(block.name, refusal=f"{span.reason} ({span.node})")
    width = observed[span.exit][0][span.channel_axis]
    generator = np.random.default_rng(index)
    W = generator.standard_normal((width, width)) / np.sqrt(width)
    b = generator.standard_normal(width)
    solution = Solution(W, b, ridge=0.0, rows=width, rank=width, condition=1.0)
    result = rewrite(model, [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model
    runner = Runner(result, choose_runtime("cpu", threads=1))
    worst = 0.0
    for size in subject.sizes:
        inputs = subject.inputs(*size)
        with quiet(), replaced(module, path, subject.kept, W, b):
            wanted = call(module, inputs)
        made = runner(_feeds(model, inputs))
        worst = max(worst, _difference([made[name] for name in model.graph.outputs], wanted))
    return Swap(block.name, worst, leftovers(result.graph))


@contextmanager
def replaced(
    module: nn.Module, path: str, kept: str, W: np.ndarray, b: np.ndarray
) -> Iterator[None]:
    """Within: the block at `path` gives x W + b, followed by its submodule `kept` if there is one.

    x is the block's first tensor; what else it returns (a position bias) is left alone.
    """
    block = module.get_submodule(path)
    entries: list[torch.Tensor] = []

    def mapped() -> torch.Tensor:
        x = entries[-1]
        weight, bias = torch.tensor(W, dtype=x.dtype), torch.tensor(b, dtype=x.dtype)
        if x.ndim == 4:
            return torch.einsum("bihw,io->bohw", x, weight) + bias[:, None, None]
        return x @ weight + bias

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entries.append(args[0] if args else kwargs["hidden_states"])

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        return (mapped(), *output[1:]) if isinstance(output, tuple) else mapped()

    def swap_input(_: nn.Module, __: Any) -> tuple[torch.Tensor]:
        return (mapped(),)

    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True)]
    if kept:
        hooks.append(block.get_submodule(kept).register_forward_pre_hook(swap_input))
    else:
        hooks.append(block.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def leftovers(graph: Graph) -> tuple[str, ...]:
    """Floating computations and weights that no output needs; its length alone is no need."""
    needed = graph.needed_by(graph.outputs)
    idle = [node for node in graph.nodes if node.index not in needed]
    nodes = [str(n) for n in idle if not all(graph.value(v).is_known_not_float for v in n.outputs)]
    read = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
    literals = set(graph.producer)
    return (*nodes, *(n for n in graph.constants if n not in read and n not in literals))


def _observe(subject: Subject, model: OnnxModel, stream: Anatomy) -> ObservedShapes:
    """Shapes of the stream's cut values at the first two sizes."""
    values = [value for cut in stream.chain.cuts for value in cut.values]
    runner = Runner(model, choose_runtime("cpu", threads=1), values)
    runs = [runner(_feeds(model, subject.inputs(*size))) for size in subject.sizes[:2]]
    return {value: [run[value].shape for run in runs] for value in values}


def _feeds(model: OnnxModel, inputs: Inputs) -> dict[str, np.ndarray]:
    return {name: inputs[name].numpy() for name in model.graph.inputs}


def _difference(made: Sequence[np.ndarray], wanted: Sequence[torch.Tensor]) -> float:
    """Worst relative difference; infinite where counts or shapes differ or a number is NaN."""
    if len(made) != len(wanted):
        return float("inf")
    worst = 0.0
    for a, b in zip(made, wanted, strict=True):
        if a.shape != tuple(b.shape):
            return float("inf")
        gap = np.abs(a.astype(np.float64) - b.double().numpy()).max(initial=0.0)
        worst = max(worst, float(gap / max(1.0, b.double().abs().max().item())))
    return float("inf") if np.isnan(worst) else worst


def _is_called(block: Block, path: str) -> bool:
    """Exporters may wrap the module once more, or leave a wrapper's name out."""
    return block.name.endswith(path) or path.endswith(block.name)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]
