"""One network in many spellings: what exporters, opsets and optimisers make of it.

Small torch modules are exported and rewritten by onnxruntime, onnxslim, onnxsim and ONNX's version
converter; a Spelling is one such file, to be held against another by replacing a block in both.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from blockfold.calibration.moments import Array
from blockfold.calibration.runtime import Runner, choose_runtime
from blockfold.calibration.solve import Solution
from blockfold.ir.blocks import Anatomy, anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.onnx_unfuse import unfuse
from blockfold.ir.spans import Refusal, Span, prove
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.tests.networks import Arrays

WORDS, WIDTH, HEADS, BLOCKS, CLASSES = 20, 16, 2, 3, 5
SIZES = ((2, 6), (3, 9))
MICROSOFT = "com.microsoft"


# The networks. `fused` asks torch for its own attention and norms instead of spelling them out.


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.fused = fused

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, turn: tuple[torch.Tensor, ...] | None
    ) -> Any:
        batch, length = x.shape[:2]
        heads = (batch, length, HEADS, WIDTH // HEADS)
        parts = [f(x).view(heads) for f in (self.query, self.key, self.value)]
        q, k, v = (part.transpose(1, 2) for part in parts)
        if turn is not None:
            q, k = (t * turn[0] + _quarter_turn(t) * turn[1] for t in (q, k))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = torch.matmul(q, k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5 + bias
            mixed = torch.matmul(scores.softmax(-1), v)
        return self.out(mixed.transpose(1, 2).contiguous().view(batch, length, WIDTH))


def _quarter_turn(t: torch.Tensor) -> torch.Tensor:
    a, b = t.chunk(2, -1)
    return torch.cat((-b, a), -1)


class Perceptron(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.gate = nn.Linear(WIDTH, 2 * WIDTH, bias=False) if gated else None

    def forward(self, x: torch.Tensor) -> Any:
        wide = self.up(x)
        return self.down(F.gelu(wide) if self.gate is None else F.silu(self.gate(x)) * wide)


class RootMeanSquare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> Any:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class Layer(nn.Module):
    def __init__(self, kind: str, fused: bool) -> None:
        super().__init__()
        self.attention = Attention(fused)
        self.mlp = Perceptron(kind == "decoder")
        self.first, self.second = _norm(kind, fused), _norm(kind, fused)
        self.is_post = kind == "post-norm"

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, turn: tuple[torch.Tensor, ...] | None
    ) -> Any:
        if self.is_post:
            x = self.first(x + self.attention(x, bias, turn))
            return self.second(x + self.mlp(x))
        x = x + self.attention(self.first(x), bias, turn)
        return x + self.mlp(self.second(x))


def _norm(kind: str, fused: bool) -> nn.Module:
    if kind != "decoder":
        return nn.LayerNorm(WIDTH)
    return nn.RMSNorm(WIDTH, eps=1e-5) if fused else RootMeanSquare()


class Transformer(nn.Module):
    """A "pre-norm" or "post-norm" encoder with a mask, or a "decoder" with RoPE and SwiGLU."""

    def __init__(self, kind: str, fused: bool) -> None:
        super().__init__()
        self.kind, self.is_fused = kind, fused
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(32, WIDTH)
        self.blocks = nn.ModuleList([Layer(kind, fused) for _ in range(BLOCKS)])
        self.norm, self.head = _norm(kind, fused), nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        x, at, turn = self.words(ids), torch.arange(ids.shape[1]), None
        hidden = (1.0 - mask[:, None, None, :].float()) * -1e4
        bias = hidden.expand(-1, -1, ids.shape[1], -1) if self.is_fused else hidden
        if self.kind == "decoder":
            angle = at[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
            turn = (torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin())
            bias = bias + torch.where(at[:, None] >= at[None], 0.0, -1e4)
        else:
            x = x + self.places(at)
        if self.kind == "post-norm":
            x = self.norm(x)
        for block in self.blocks:
            x = block(x, bias, turn)
        return self.head((x if self.kind == "post-norm" else self.norm(x)).mean(1))


class Residual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        stride = 1 + (channels != out)
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out) for _ in range(3)])
        self.short = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        branch = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(self.short(x) + branch)


class Convolutions(nn.Module):
    """Two residual blocks of 8 channels, one that halves the size, two of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        widths = [8, 8, 8, 16, 16, 16]
        self.blocks = nn.ModuleList(map(Residual, widths[:-1], widths[1:]))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


NETWORKS = ("pre-norm", "post-norm", "decoder", "convolutions")


def build(network: str, fused: bool) -> nn.Module:
    torch.manual_seed(0)
    module = Convolutions() if network == "convolutions" else Transformer(network, fused)
    for value in [*module.parameters(), *module.buffers()]:
        if value.ndim == 1:  # fresh norms and biases are all 0 and 1
            value.data += 0.2 * torch.rand_like(value)
    return module.eval()


def feeds(network: str, batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * batch + length)
    if network == "convolutions":
        return {"x": torch.randn(batch, 3, 8, 8, generator=generator)}
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, -1] = 0
    return {"ids": torch.randint(0, WORDS, (batch, length), generator=generator), "mask": mask}


# Their spellings.


@cache
def exported(
    network: str, opset: int = 17, *, fixed: bool = False, dynamo: bool = False, fused: bool = False
) -> onnx.ModelProto:
    """The network as torch exports it: by tracing, or by torch.export. Not to be changed."""
    module, inputs = build(network, fused), feeds(network, *SIZES[0])
    free = {0: "batch"} if network == "convolutions" else {0: "batch", 1: "length"}
    file: Any = io.BytesIO()  # which tracing takes, whatever its annotation says
    settings: dict[str, Any] = {"input_names": list(inputs), "opset_version": opset}
    with quiet():
        if dynamo:
            shapes = {name: dict.fromkeys(free, torch.export.Dim.DYNAMIC) for name in inputs}
            program = torch.onnx.export(
                module, (), kwargs=inputs, dynamic_shapes=shapes, dynamo=True, **settings
            )
            assert program is not None
            return onnx.ModelProto.FromString(program.model_proto.SerializeToString())
        axes = None if fixed else dict.fromkeys(inputs, free)
        values = tuple(inputs.values())
        torch.onnx.export(module, values, file, dynamic_axes=axes, dynamo=False, **settings)
    return onnx.ModelProto.FromString(file.getvalue())


def optimized(model: onnx.ModelProto, level: str) -> onnx.ModelProto:
    """What onnxruntime itself makes of the model offline, at a level of its optimisation."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        providers = ["CPUExecutionProvider"]
        ort.InferenceSession(model.SerializeToString(), options, providers=providers)
        return onnx.load(options.optimized_model_filepath)


def fused_for(model_type: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """onnxruntime's fusions for transformers, as its optimiser script and Optimum apply them."""

    def optimise(model: onnx.ModelProto) -> onnx.ModelProto:
        with TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "model.onnx"
            onnx.save(model, path)
            optimizer: Any = importlib.import_module("onnxruntime.transformers.optimizer")
            options: Any = importlib.import_module("onnxruntime.transformers.fusion_options")
            made = optimizer.optimize_model(
                str(path),
                model_type,
                HEADS,
                WIDTH,
                optimization_options=options.FusionOptions(model_type),
                opt_level=0,
            )
            made.save_model_to_file(str(path))
            return onnx.load(path)

    return optimise


def slimmed(model: onnx.ModelProto) -> onnx.ModelProto:
    with quiet():
        made: onnx.ModelProto = importlib.import_module("onnxslim").slim(copy(model))
    return made


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    with quiet():
        made, is_same = importlib.import_module("onnxsim").simplify(copy(model))
    assert is_same
    return onnx.ModelProto.FromString(made.SerializeToString())


OPTIMISERS: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "as it is": lambda model: model,
    "onnxruntime": lambda model: optimized(model, "EXTENDED"),
    "onnxslim": slimmed,
    "onnxsim": simplified,
}


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters and optimisers print, log and warn of their own future; not our subject."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# The comparison.


class Spelling:
    """A file, what hides in it taken apart, and its one stream, run on a few batches."""

    def __init__(self, proto: onnx.ModelProto, batches: Sequence[Arrays]) -> None:
        self.model = unfuse(read(proto))
        self.batches = batches
        streams = [anatomy(self.model.graph, chain) for chain in find_chains(self.model.graph)]
        self.stream: Anatomy = max(streams, key=lambda stream: len(stream.blocks))
        names = [name for cut in self.stream.chain.cuts for name in cut.values]
        self.values = self.run(self.model, names)
        self.observed = {name: [run[name].shape for run in self.values] for name in names}
        self.made: dict[tuple[str, str, int], list[np.ndarray]] = {}

    @property
    def blocks(self) -> int:
        return len(self.stream.blocks)

    def run(self, model: OnnxModel, taps: Sequence[str] = ()) -> list[dict[str, np.ndarray]]:
        runner = Runner(model, choose_runtime("cpu", threads=1), taps)
        return [runner(batch) for batch in self.batches]

    def span(self, index: int) -> Span:
        """Block `index`, proved on the data; a proof without data must find the same ends."""
        block = self.stream.blocks[index]
        ends = (self.model.graph, self.stream, block.start, block.stop)
        proved, alone = prove(*ends, self.observed), prove(*ends)
        assert isinstance(proved, Span), proved
        assert isinstance(alone, Refusal) or (alone.entry, alone.exit) == (
            proved.entry,
            proved.exit,
        )
        return proved

    def replaced(self, span: Span, seed: int) -> list[np.ndarray]:
        """All outputs with a random map, the same for the same seed, in the place of the span."""
        key = (span.entry, span.exit, seed)
        if key not in self.made:
            self.made[key] = self._replaced(span, seed)
        return self.made[key]

    def _replaced(self, span: Span, seed: int) -> list[np.ndarray]:
        width = self.values[0][span.exit].shape[span.channel_axis]
        rng = np.random.default_rng(seed)
        W = rng.standard_normal((width, width)) / np.sqrt(width)
        solution = any_map(W, rng.standard_normal((width,)))
        made = rewrite(self.model, [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model
        return [array for run in self.run(made) for array in run.values()]

    def same(self, cut: int, wanted: np.ndarray) -> str:
        """The value at a cut that holds the numbers of `wanted` on the first batch."""
        names = self.stream.chain.cuts[cut].values
        found = {name: self.values[0][name] for name in names}
        near = [n for n in names if found[n].shape == wanted.shape]
        equal = [n for n in near if np.allclose(found[n], wanted, rtol=0, atol=1e-4)]
        assert equal, f"none of {names} is the value asked for"
        return equal[0]


def worst_difference(plain: Spelling, other: Spelling, index: int = 1, seed: int = 7) -> float:
    """Largest relative difference once block `index` of both is replaced by one and the same map.

    The map of the plain spelling has random numbers of seed 7, that of the other those of `seed`.
    Where the other's span ends at another value of the cut (after a fused norm, say), so does the
    plain one's.
    """
    span, twin = other.span(index), plain.span(index)
    entry = plain.same(twin.start, other.values[0][span.entry])
    exit_ = plain.same(twin.stop, other.values[0][span.exit])
    wanted = plain.replaced(replace(twin, entry=entry, exit=exit_), 7)
    made = other.replaced(span, seed)
    assert len(made) == len(wanted) > 0
    gaps = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(made, wanted, strict=True)]
    return float(np.max(gaps))


def any_map(W: Array, b: Array) -> Solution:
    """The affine map x W + b, W (d, d), as if it had been solved."""
    return Solution(W, b, ridge=0.0, rows=len(b), rank=len(b), condition=1.0)


def arrays(network: str, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Arrays]:
    return [{n: t.numpy() for n, t in feeds(network, *size).items()} for size in sizes]


@cache
def plain_export(network: str, sizes: tuple[tuple[int, int], ...] = SIZES) -> Spelling:
    return Spelling(exported(network), arrays(network, sizes))
