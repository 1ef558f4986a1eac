"""Networks and functions as torch captures and exports them, for the tests of its front end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from blockfold.ir import onnx_view
from blockfold.ir.blocks import Anatomy, anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.graph import Graph, Node
from blockfold.ir.torch_view import capture, view

ANY = Dim.DYNAMIC
X = torch.zeros(2, 3, 4)
W, V = torch.ones(4, 4), torch.ones(4)


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def seen(function: Callable[..., Any], *args: Any, **named: Any) -> Graph:
    """The view of a function of tensors."""
    return view(capture(Call(function).eval(), args or (X,), **named))


def decomposed(program: ExportedProgram) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        return program.run_decompositions()


def last(function: Callable[..., Any], *args: Any) -> Node:
    """The last node of a function's view."""
    return seen(function, *args).nodes[-1]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """With one head; tensors of shape (batch, tokens, d)."""
    q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).squeeze(1)


def layer(norm_first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)


class Language(nn.Module):
    """Token and position tables, a mask of padding, and a head tied to the token table."""

    def __init__(self, norm_first: bool, depth: int = 3) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(16, 8)
        self.norm = nn.LayerNorm(8)
        self.blocks = nn.ModuleList([layer(norm_first) for _ in range(depth)])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        at = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        x = self.norm(self.tokens(ids) + self.places(at))
        for block in self.blocks:
            x = block(x, src_key_padding_mask=mask == 0)
        return self.head(x)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2, self.relu = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        self.skip = None if stride == 1 else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> Any:
        made = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        made += x if self.skip is None else self.skip(x)
        return self.relu(made)


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6())
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(*(Residual(6, 6) for _ in range(3)), Residual(6, 9, 2))
        self.drop, self.head = nn.Dropout2d(), nn.Linear(9, 5)

    def forward(self, image: torch.Tensor) -> Any:
        x = self.blocks(self.pool(self.stem(functional.pad(image, (0, 1, 0, 1)))))
        return self.head(self.drop(functional.adaptive_avg_pool2d(x, 1)).flatten(1))


class Gated(nn.Module):
    """A gated MLP behind a spelled-out norm, its first half chosen by a router."""

    def __init__(self, d: int = 8) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d))
        self.up, self.down, self.router = nn.Linear(d, 16), nn.Linear(8, d), nn.Linear(d, 4)

    def forward(self, x: torch.Tensor) -> Any:
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
        best, index = self.router(y).topk(2, dim=-1)
        gate, value = self.up(y).chunk(2, dim=-1)
        shift = self.router(y).argmax(-1, keepdim=True) + index.sum(-1, keepdim=True)
        return x + self.down(functional.silu(gate) * value) * (best[..., :1] + shift)


def gated() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), *(Gated() for _ in range(3)), nn.Linear(8, 3))


class Cached(nn.Module):
    """A decoder that takes and gives keys and values, its rotary angles made without gradient."""

    rates: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        lists = [nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]) for _ in range(3)]
        self.keys, self.values, self.mlps = lists
        self.register_buffer("rates", torch.rand(8), persistent=False)

    def forward(self, ids: torch.Tensor, *past: torch.Tensor) -> Any:
        x, present = self.tokens(ids), []
        with torch.no_grad():
            turn = (torch.arange(ids.shape[1])[:, None] * self.rates).cos()
        for i, mlp in enumerate(self.mlps):
            k = torch.cat([past[2 * i], self.keys[i](x) * turn], 1)
            v = torch.cat([past[2 * i + 1], self.values[i](x)], 1)
            present += [k, v]
            x = x + attend(x * turn, k, v)
            x = x + mlp(x).relu_()
        return x, *present


class Translator(nn.Module):
    """Two streams that meet: an encoder, and a decoder that looks at what it made."""

    def __init__(self) -> None:
        super().__init__()
        looking = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.ModuleList([layer() for _ in range(2)])
        self.decoder = nn.TransformerDecoder(looking, 2)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> Any:
        for block in self.encoder:
            source = block(source)
        return self.decoder(target, source)


def marked() -> nn.Module:
    """Writes into a slice of the stream."""

    def mark(x: torch.Tensor) -> torch.Tensor:
        x[:, 0].add_(2)
        return x

    return nn.Sequential(layer(), Call(mark), layer(), Call(torch.exp_))


IDS, MASK = torch.ones(2, 6, dtype=torch.int64), torch.ones(2, 6, dtype=torch.int64)
STREAM = torch.zeros(2, 5, 8)
PAST = [torch.zeros(2, 3, 8) for _ in range(4)]
LENGTH = {0: ANY, 1: ANY}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], Any]] = {
    "pre-norm": (lambda: Language(True), (IDS, MASK), (LENGTH, LENGTH)),
    "post-norm": (lambda: Language(False), (IDS, MASK), (LENGTH, LENGTH)),
    "convolutions": (Vision, (torch.zeros(2, 3, 16, 16),), ({0: ANY},)),
    "gated": (gated, (torch.zeros(2, 6, 5),), (LENGTH,)),
    "cached": (Cached, (IDS, *PAST), (LENGTH, (LENGTH,) * 4)),
    "translator": (Translator, (STREAM, STREAM.clone()), (LENGTH, LENGTH)),
    "marked": (marked, (STREAM,), (LENGTH,)),
}
"""Networks, their inputs, and which axes may change."""


def network(name: str) -> tuple[nn.Module, tuple[Any, ...], Any]:
    """Its weights are drawn at random, for the ONNX exporter shares equal ones among layers."""
    build, args, dynamic = NETWORKS[name]
    module = build().eval()
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module, args, dynamic


@cache
def captured(name: str) -> ExportedProgram:
    module, args, dynamic = network(name)
    return capture(module, args, dynamic_shapes=dynamic)


@cache
def from_onnx(name: str) -> Graph:
    module, args, dynamic = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        made = torch.onnx.export(module, args, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert made is not None
    return onnx_view.view(made.model_proto)


def from_torch(name: str) -> Graph:
    return view(captured(name))


def chains(graph: Graph) -> list[Anatomy]:
    return [anatomy(graph, chain) for chain in find_chains(graph)]


def described(graph: Graph) -> list[tuple[list[str], list[str]]]:
    """Per chain the names of its units, which are one fewer than its cuts, and of its blocks."""
    return [
        ([_name(graph, a, i) for i in range(len(a.units))], [b.name for b in a.blocks])
        for a in chains(graph)
    ]


def _name(graph: Graph, a: Anatomy, index: int) -> str:
    """A unit's name. The ONNX exporter folds a batch norm into the convolution before it, and what
    it makes bears the norm's name; so does here a unit that is such a convolution alone."""
    unit = a.units[index]
    made = unit.nodes[-1].outputs[0]
    norms = [n for n in graph.consumers.get(made, ()) if n.op == "aten.batch_norm"]
    return norms[0].scope[0] if len(unit.nodes) == 1 and norms else unit.name
