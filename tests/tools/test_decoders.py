"""Exported decoders without the caches of one layer, against torch with the same layer replaced."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blockfold.calibration.solve import Solution
from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.onnx_cache import find_caches
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.spans import Span, prove
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.tests.decoders import Decoder, Tokens, generate

if TYPE_CHECKING:
    from torch import nn

    from blockfold.tools.support.subject import Subject

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]
PROMPT = np.random.default_rng(0).integers(3, 64, (2, 5))
STEPS = 6


def span_of(model: OnnxModel, path: str) -> Span:
    """The span of one layer, which may take its caches along."""
    may_go = frozenset(cache.present for cache in find_caches(model))
    streams = [anatomy(model.graph, chain) for chain in find_chains(model.graph)]
    (stream,) = (stream for stream in streams if stream.blocks)
    (block,) = (b for b in stream.blocks if path.endswith(b.name) or b.name.endswith(path))
    span = prove(model.graph, stream, block.start, block.stop, None, may_go)
    assert isinstance(span, Span), span
    return span


def told_by_torch(subject: Subject, module: nn.Module, tokens: Tokens) -> NDArray[Any]:
    """Scores of every token, computed all at once: nothing is remembered."""
    import torch

    from blockfold.tools.support.exporters import call, quiet

    ids = torch.tensor(tokens)
    caches = {
        name: value[:, :, :0]
        for name, value in subject.inputs(len(tokens), 1).items()
        if name.startswith("past.")
    }
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **caches}
    with quiet():
        scores: NDArray[Any] = call(module, given)[0].numpy()
    return scores


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["GPT-2, KV cache", "Llama, KV cache"])
def test_what_is_left_generates_as_torch_does(name: str, exporter: str, tmp_path: Path) -> None:
    from blockfold.tools.support.exporters import EXPORTERS, quiet
    from blockfold.tools.support.trial import Place, given_map, replaced
    from blockfold.tools.support.zoo import ZOO

    subject = next(subject for subject in ZOO if subject.name == name)
    module = subject.make()
    with quiet():
        EXPORTERS[exporter](subject, module, tmp_path / "model.onnx")
    model = read(tmp_path / "model.onnx")
    for layer, path in enumerate(subject.streams(module)[0]):
        span = span_of(model, path)
        W, b = given_map(32, layer)
        solution = Solution(W, b, ridge=0.0, rows=len(b), rank=len(b), condition=1.0)
        made = rewrite(model, [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model
        gone = {f"past.{layer}.key", f"past.{layer}.value"}
        assert made.graph.inputs == tuple(i for i in model.graph.inputs if i not in gone)
        assert made.graph.outputs == tuple(o for o in model.graph.outputs if o not in span.dropped)
        tokens, _ = generate(made.proto, PROMPT, STEPS)
        whole = np.concatenate([PROMPT, tokens], axis=1)
        with replaced(module, Place(path), W, b):
            wanted = told_by_torch(subject, module, whole)
        original = told_by_torch(subject, module, whole)
        assert np.abs(original - wanted).max() > 0.1, "the map is not seen"
        np.testing.assert_array_equal(wanted[:, PROMPT.shape[1] - 1 : -1].argmax(-1), tokens)
        decoder = Decoder(made.proto, len(whole))
        ends = [0, *range(PROMPT.shape[1], whole.shape[1] + 1)]
        steps = [decoder.step(whole[:, a:b]) for a, b in pairwise(ends)]
        atol = 1e-5 * float(np.abs(wanted).max())
        np.testing.assert_allclose(np.concatenate(steps, axis=1), wanted, atol=atol)
