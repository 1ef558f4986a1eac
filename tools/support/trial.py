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
from ...ir.channels import ObservedShapes
from ...ir.cuts import find_chains
from ...ir.graph import Graph
from ...ir.onnx_file import OnnxModel, read
from ...ir.spans import Refusal, Span, prove
from ...passes.pipeline import ALL_PASSES, rewrite
from ...passes.replacement import Replacement
from .exporters import EXPORTERS, call, quiet
from .subject import Inputs, Subject

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Swap:
    """One block replaced: the worst difference to torch over all sizes, or why it was refused.

    `error` is max |onnxruntime - torch| / max |torch|. `leftovers` are nodes and
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
    swaps: list[Swap] = []
    for paths in expected:
        stream = next((s for s in streams if _is_called(s.blocks[0], paths[0])), None)
        if stream is not None:
            swaps += _swaps(Case(subject, module, model, stream, paths))
    found = tuple(len(stream.blocks) for stream in streams)
    return Row(subject.name, exporter, counts, found, tuple(swaps))


@dataclass(frozen=True)
class Case:
    """One stream of an exported network, and the paths of its blocks in torch."""

    subject: Subject
    module: nn.Module
    model: OnnxModel
    stream: Anatomy
    paths: Sequence[str]


def _swaps(case: Case) -> list[Swap]:
    """The first block, and of the others the one nearest to the middle that may be replaced.

    Of blocks that are refused also the second half, where the subject tells how.
    """
    observed = _observe(case)
    blocks = case.stream.blocks
    proved = [_proved(case, block.start, block.stop, observed) for block in blocks]
    middle = len(proved) // 2
    order = sorted(
        range(1, len(proved)), key=lambda i: (isinstance(proved[i], Refusal), abs(i - middle))
    )
    swaps: list[Swap] = []
    for index in (0, *order[:1]):
        stop = blocks[index].stop
        swaps.append(_swap(case, index, proved[index], observed))
        if swaps[-1].refusal and case.subject.half:
            half = _proved(case, stop - 1, stop, observed)
            swaps.append(_swap(case, index, half, observed, case.subject.half))
    return swaps


def _proved(case: Case, start: int, stop: int, observed: ObservedShapes) -> Span | Refusal:
    """The span, if a map from the stream to itself can stand in: it is tried with such a one."""
    span = prove(case.model.graph, case.stream, start, stop, observed)
    if isinstance(span, Refusal) or not span.strides:
        return span
    strides = "x".join(map(str, span.strides))
    return Refusal(start, stop, span.name, f"a convolution of strides {strides} alone", span.exit)


def _swap(
    case: Case, index: int, span: Span | Refusal, observed: ObservedShapes, entry: str = ""
) -> Swap:
    """Replace block `index`, or its part from the input of `entry` on, in the file and in torch."""
    if isinstance(span, Refusal):
        return Swap(span.name, refusal=f"{span.reason} ({span.node})")
    path = case.paths[index]
    if not _is_called(case.stream.blocks[index], path):
        return Swap(span.name, refusal=f"is not {path}")
    W, b = given_map(observed[span.exit][0][span.channel_axis], index)
    solution = Solution(W, b, ridge=0.0, rows=len(b), rank=len(b), condition=1.0)
    result = rewrite(case.model, [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model
    worst = compare(case, result, Place(path, entry, case.subject.kept), W, b)
    return Swap(span.name, worst, leftovers(result.graph))


@dataclass(frozen=True)
class Place:
    """Where torch puts the map: from the input of `entry` in the block at `path`, up to `kept`."""

    path: str
    entry: str = ""
    kept: str = ""


def given_map(width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random map that keeps the size of a stream: W (width, width) and b (width,)."""
    generator = np.random.default_rng(seed)
    W = generator.standard_normal((width, width)) / np.sqrt(width)
    return W, generator.standard_normal(width)


def compare(case: Case, result: OnnxModel, place: Place, W: np.ndarray, b: np.ndarray) -> float:
    """Worst difference of the file to torch with x W + b at that place, at all sizes."""
    runner = Runner(result, choose_runtime("cpu", threads=1))
    worst = 0.0
    for size in case.subject.sizes:
        inputs = case.subject.inputs(*size)
        with quiet(), replaced(case.module, place, W, b):
            wanted = call(case.module, inputs)
        made = runner(_feeds(case.model, inputs))
        worst = max(worst, difference([made[name] for name in case.model.graph.outputs], wanted))
    return worst


@contextmanager
def replaced(module: nn.Module, place: Place, W: np.ndarray, b: np.ndarray) -> Iterator[None]:
    """Within: the block gives x W + b, followed by its submodule `kept` if there is one.

    x is the first tensor read at the entry; what else it returns (a position bias) is left alone.
    """
    block = module.get_submodule(place.path)
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

    first = block.get_submodule(place.entry) if place.entry else block
    hooks = [first.register_forward_pre_hook(enter, with_kwargs=True)]
    if place.kept:
        hooks.append(block.get_submodule(place.kept).register_forward_pre_hook(swap_input))
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


def difference(made: Sequence[np.ndarray], wanted: Sequence[torch.Tensor]) -> float:
    """Worst max |made - wanted| / max |wanted| of any output; infinite for other shapes and NaN."""
    if len(made) != len(wanted):
        return float("inf")
    worst = 0.0
    for a, b in zip(made, wanted, strict=True):
        truth = b.double().numpy()
        if a.shape != truth.shape or not (np.isfinite(a).all() and np.isfinite(truth).all()):
            return float("inf")
        gap = np.abs(a.astype(np.float64) - truth).max(initial=0.0)
        worst = max(worst, float(gap / max(np.abs(truth).max(initial=0.0), 1e-30)))
    return worst


def _observe(case: Case) -> ObservedShapes:
    """Shapes of the stream's cut values at the first two sizes."""
    values = [value for cut in case.stream.chain.cuts for value in cut.values]
    runner = Runner(case.model, choose_runtime("cpu", threads=1), values)
    runs = [runner(_feeds(case.model, case.subject.inputs(*s))) for s in case.subject.sizes[:2]]
    return {value: [run[value].shape for run in runs] for value in values}


def _feeds(model: OnnxModel, inputs: Inputs) -> dict[str, np.ndarray]:
    return {name: inputs[name].numpy() for name in model.graph.inputs}


def _is_called(block: Block, path: str) -> bool:
    """Exporters may wrap the module once more, or leave a wrapper's name out."""
    return block.name.endswith(path) or path.endswith(block.name)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]
