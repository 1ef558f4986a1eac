"""A small decoder with a cache, and generation token by token with whatever decoder is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from blockfold.calibration.runtime import Runner, choose_runtime
from blockfold.ir.onnx_cache import find_caches
from blockfold.ir.onnx_file import read
from blockfold.tests.networks import FLOAT, INT64, Arrays, Net

WORDS, D = 30, 8
PARTS = ("key", "value")
Tokens = NDArray[np.int64]


def cached_decoder(
    blocks: int = 3,
    affine: Collection[int] = (1,),
    *,
    peek: int | None = None,
    lend: int | None = None,
) -> onnx.ModelProto:
    """ids (batch, length) and past.{i}.key, past.{i}.value (batch, past, D) -> logits and presents.

    Attention of block i joins what is new to its past; in `affine` blocks its weight is zero, and
    their MLP is linear. Places and the causal bias are told by the length of past.0.key. The head
    adds the sum of past.{peek}.key; block `lend` + 1 asks whether a present key of `lend` is
    positive.
    """
    net = Net(3, gain=1.0)
    ints = np.int64

    def number(value: int) -> str:
        return net.constant(np.array(value, ints))

    net.scope = "/embed"
    past = net.node("Gather", net.node("Shape", "past.0.key"), number(1))
    new = net.node("Gather", net.node("Shape", "ids"), number(1))
    total = net.node("Add", past, new)
    places = net.node("Range", past, total, number(1))
    words = net.node("Gather", net.weight(WORDS, D), "ids")
    h = net.node("Add", words, net.node("Gather", net.weight(64, D), places), out="embedded")
    everywhere = net.node("Range", number(0), total, number(1))
    column = net.node("Unsqueeze", places, net.constant(np.array([1], ints)))
    seen = net.node("LessOrEqual", everywhere, column)
    zero, never = (net.constant(np.array(x, np.float32)) for x in (0.0, -1e9))
    bias = net.node("Where", seen, zero, never)
    for i in range(blocks):
        net.scope = f"/blocks.{i}"
        x = net.norm(h, D)
        query, *rows = (net.linear(x, D, D) for _ in range(3))
        key, value = (
            net.node("Concat", f"past.{i}.{part}", row, out=f"present.{i}.{part}", axis=1)
            for part, row in zip(PARTS, rows, strict=True)
        )
        if lend is not None and i == lend + 1:
            most = net.node("ReduceMax", f"present.{lend}.key", axes=[1, 2], keepdims=1)
            query = net.node(
                "Add", query, net.node("Cast", net.node("Greater", most, zero), to=FLOAT)
            )
        scores = net.node("MatMul", query, net.node("Transpose", key, perm=[0, 2, 1]))
        mixed = net.node("MatMul", net.node("Softmax", net.node("Add", scores, bias)), value)
        out = np.zeros((D, D), np.float32) if i in affine else None
        mixed = net.node("MatMul", mixed, net.weight(D, D) if out is None else net.constant(out))
        h = net.node("Add", h, mixed, out=f"a{i}")
        branch = net.affine(h, D) if i in affine else net.mlp(net.norm(h, D), D)
        h = net.node("Add", h, branch, out=f"h{i}")
    net.scope = "/head"
    if peek is not None:
        axes = net.constant(np.array([1, 2], ints))
        h = net.node("Add", h, net.node("ReduceSum", f"past.{peek}.key", axes, keepdims=1))
    net.node("MatMul", net.norm(h, D), net.weight(D, WORDS), out="logits")
    caches = [f"{i}.{part}" for i in range(blocks) for part in PARTS]
    inputs: dict[str, Any] = {"ids": (INT64, ("batch", "length"))}
    inputs |= {f"past.{name}": (FLOAT, ("batch", f"past {name}", D)) for name in caches}
    outputs: dict[str, Any] = {"logits": (FLOAT, ("batch", "length", WORDS))}
    outputs |= {f"present.{name}": (FLOAT, ("batch", f"total {name}", D)) for name in caches}
    return net.model(inputs, outputs)


class Decoder:
    """A decoder on its way: `step` takes new tokens and remembers them in its caches."""

    def __init__(self, model: onnx.ModelProto, rows: int) -> None:
        source = read(model)
        graph = source.graph
        self._runner = Runner(source, choose_runtime("cpu", threads=1))
        self._pairs = {cache.past: cache.present for cache in find_caches(source)}
        self._ids = next(name for name in graph.inputs if name.endswith("ids"))
        self._mask = next((name for name in graph.inputs if name.endswith("mask")), None)
        self.seen = 0
        self.past: Arrays = {}
        for name in self._pairs:
            free = iter((rows, 0))  # the batch, and nothing remembered yet
            dims = [d if isinstance(d, int) else next(free) for d in graph.value(name).shape or ()]
            self.past[name] = np.zeros(dims, np.float32)

    def feeds(self, tokens: Tokens) -> Arrays:
        """What the model is given for new tokens (rows, n)."""
        found = {self._ids: tokens, **self.past}
        if self._mask is not None:
            rows, new = tokens.shape
            found[self._mask] = np.ones((rows, self.seen + new), np.int64)
        return found

    def step(self, tokens: Tokens) -> NDArray[Any]:
        """The first output, for new tokens (rows, n)."""
        made = self._runner(self.feeds(tokens))
        self.past = {past: made[present] for past, present in self._pairs.items()}
        self.seen += tokens.shape[1]
        return made[self._runner.outputs[0]]


def generate(model: onnx.ModelProto, prompt: Tokens, steps: int) -> tuple[Tokens, NDArray[Any]]:
    """Greedy tokens (rows, steps) after a prompt (rows, n), and the last step's scores."""
    decoder = Decoder(model, len(prompt))
    tokens, found = prompt, []
    for _ in range(steps):
        scores = decoder.step(tokens)
        tokens = scores[:, -1:].argmax(-1)
        found.append(tokens)
    return np.concatenate(found, axis=1), scores


def steps_of(
    model: onnx.ModelProto, rows: int, *, words: int = WORDS, seed: int = 0
) -> list[Mapping[str, NDArray[Any]]]:
    """Calibration data: a first step of six tokens with empty caches, and one of a single token."""
    rng = np.random.default_rng(seed)
    first, second = (rng.integers(3, words, (rows, n)) for n in (6, 1))
    decoder = Decoder(model, rows)
    prefill = decoder.feeds(first)
    decoder.step(first)
    return [prefill, decoder.feeds(second)]
