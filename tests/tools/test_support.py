"""The support table's promise: every network of the zoo, through both exporters, against torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]
NAMES = (
    "BERT, RoBERTa, DistilBERT, ModernBERT, ViT, DeiT, Swin, GPT-2, Llama, Qwen3, Gemma, Mixtral, "
    "T5 encoder, T5, Whisper encoder, CLIP, ConvNeXt, ResNet, MobileNetV2"
).split(", ")
WITH_CACHE = ["GPT-2, KV cache", "Llama, KV cache"]
EXPORTERS = ["dynamo", "torchscript"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def test_the_zoo_is_what_is_tried_here() -> None:
    from blockfold.tools.support.zoo import ZOO

    assert [subject.name for subject in ZOO] == [*NAMES, *WITH_CACHE]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_found_and_replaced_as_in_torch(
    name: str, exporter: str, tmp_path: Path
) -> None:
    from blockfold.tools.support.trial import try_subject
    from blockfold.tools.support.zoo import ZOO

    subject = next(subject for subject in ZOO if subject.name == name)
    row = try_subject(subject, exporter, tmp_path)
    assert row.failure == ""
    assert sorted(row.found) == sorted(row.expected)
    assert len(row.swaps) == 2 * len(row.expected)
    assert [swap for swap in row.swaps if not swap.is_good] == []


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", WITH_CACHE)
def test_blocks_that_hand_out_their_keys_are_refused(
    name: str, exporter: str, tmp_path: Path
) -> None:
    from blockfold.tools.support.trial import try_subject
    from blockfold.tools.support.zoo import ZOO

    subject = next(subject for subject in ZOO if subject.name == name)
    row = try_subject(subject, exporter, tmp_path)
    assert row.found == row.expected == (3,)
    assert all("graph output" in swap.refusal for swap in row.swaps)


def test_the_comparison_sees_a_wrong_map_and_a_wrong_place(tmp_path: Path) -> None:
    """A trial in which torch is given another map, or another block, must fail."""
    from blockfold.ir.blocks import anatomy
    from blockfold.ir.cuts import find_chains
    from blockfold.ir.onnx_file import read
    from blockfold.tools.support.exporters import EXPORTERS as EXPORT
    from blockfold.tools.support.exporters import quiet
    from blockfold.tools.support.trial import TOLERANCE, Case, compare, given_map
    from blockfold.tools.support.zoo import ZOO

    subject = next(subject for subject in ZOO if subject.name == "BERT")
    module = subject.make()
    with quiet():
        EXPORT["torchscript"](subject, module, tmp_path / "bert.onnx")
    model = read(tmp_path / "bert.onnx")
    stream = anatomy(model.graph, find_chains(model.graph)[0])
    paths = subject.streams(module)[0]
    case = Case(subject, module, model, stream, paths)
    W, b = given_map(32, 0)
    assert compare(case, model, paths[1], W, b) > 100 * TOLERANCE
    assert compare(case, model, paths[1], np.full_like(W, np.nan), b) == float("inf")
