"""The support table's promise: every network of the zoo, through both exporters, against torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from blockfold.calibration.solve import Solution
from blockfold.ir.blocks import Unit, anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.graph import Graph
from blockfold.ir.onnx_file import read
from blockfold.ir.spans import Span, prove
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.replacement import Replacement

if TYPE_CHECKING:
    from blockfold.tools.support.subject import Subject
    from blockfold.tools.support.trial import Row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]
NAMES = (
    "BERT, RoBERTa, DistilBERT, ModernBERT, ViT, DeiT, Swin, GPT-2, Llama, Qwen3, Gemma, Mixtral, "
    "T5 encoder, T5, Whisper encoder, CLIP, ConvNeXt, ResNet, MobileNetV2, DeBERTa-v2, BLOOM, "
    "BART, Mamba, Segformer"
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


def tried(name: str, exporter: str, folder: Path) -> Row:
    """The row of the table; where torch.export made the file, its view of the graph agrees too."""
    from blockfold.tools.support.trial import try_subject
    from blockfold.tools.support.zoo import ZOO

    subject = next(subject for subject in ZOO if subject.name == name)
    row = try_subject(subject, exporter, folder)
    assert row.failure == ""
    assert sorted(row.found) == sorted(row.expected)
    if exporter == "dynamo":
        require_same_cuts(subject, folder / f"{subject.key}-dynamo.onnx")
    return row


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_found_and_replaced_as_in_torch(
    name: str, exporter: str, tmp_path: Path
) -> None:
    row = tried(name, exporter, tmp_path)
    assert len(row.swaps) == 2 * len(row.expected)
    assert [swap for swap in row.swaps if not swap.is_good] == []


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", WITH_CACHE)
def test_blocks_that_hand_out_their_keys_are_refused_but_their_second_halves(
    name: str, exporter: str, tmp_path: Path
) -> None:
    row = tried(name, exporter, tmp_path)
    blocks, halves = row.swaps[0::2], row.swaps[1::2]
    assert len(blocks) == len(halves) == 2
    assert all("graph output" in swap.refusal for swap in blocks)
    assert [swap for swap in halves if not swap.is_good] == []


def described(graph: Graph) -> list[tuple[list[str], list[str]]]:
    """Names of the units and of the blocks of every stream."""
    streams = [anatomy(graph, chain) for chain in find_chains(graph)]
    return [
        ([unit_name(graph, unit) for unit in stream.units], [b.name for b in stream.blocks])
        for stream in streams
    ]


def unit_name(graph: Graph, unit: Unit) -> str:
    """The exporter folds a batch norm into the convolution before it and keeps the norm's name."""
    made = unit.nodes[-1].outputs[0]
    norms = [node for node in graph.consumers.get(made, ()) if node.op == "aten.batch_norm"]
    return norms[0].scope[0] if len(unit.nodes) == 1 and norms else unit.name


EXPORTER_ADDS = {"Swin": "swin.pooler"}
"""Its pooling has an `as_strided` that the exporter writes as a Gather: a unit more."""


def require_same_cuts(subject: Subject, file: Path) -> None:
    """The view of the captured torch graph shows what the exported file shows, one to one."""
    from blockfold.ir.torch_view import capture, view
    from blockfold.tools.support.exporters import dynamic_shapes, quiet

    module, inputs = subject.make(), subject.inputs(*subject.sizes[0])
    shapes = dynamic_shapes(subject)
    with quiet():
        if subject.has_cache:
            program = capture(module, tuple(inputs.values()), None, shapes)
        else:
            program = capture(module, (), inputs, shapes)
    ours, theirs = described(view(program)), described(read(file).graph)
    if subject.name in EXPORTER_ADDS:
        theirs[0][0].remove(EXPORTER_ADDS[subject.name])
    assert ours == theirs


def test_the_comparison_sees_a_wrong_map_and_a_wrong_place(tmp_path: Path) -> None:
    """A trial in which torch is given another map, or another block, must fail."""
    from blockfold.tools.support.exporters import EXPORTERS as EXPORT
    from blockfold.tools.support.exporters import quiet
    from blockfold.tools.support.trial import TOLERANCE, Case, Place, compare, given_map
    from blockfold.tools.support.zoo import ZOO

    subject = next(subject for subject in ZOO if subject.name == "BERT")
    module = subject.make()
    with quiet():
        EXPORT["torchscript"](subject, module, tmp_path / "bert.onnx")
    model = read(tmp_path / "bert.onnx")
    stream = anatomy(model.graph, find_chains(model.graph)[0])
    paths = subject.streams(module)[0]
    case = Case(subject, module, model, stream, paths)
    block = stream.blocks[1]
    span = prove(model.graph, stream, block.start, block.stop)
    assert isinstance(span, Span)
    W, b = given_map(32, 0)
    solution = Solution(W, b, ridge=0.0, rows=32, rank=32, condition=1.0)
    result = rewrite(model, [Replacement(span, solution, 0.0)], {}, ALL_PASSES).model
    right, wrong = Place(paths[1], kept=subject.kept), Place(paths[0], kept=subject.kept)
    assert compare(case, result, right, W, b) <= TOLERANCE
    assert compare(case, result, wrong, W, b) > 100 * TOLERANCE
    assert compare(case, result, Place(paths[1]), W, b) > 100 * TOLERANCE
    assert compare(case, result, right, *given_map(32, 1)) > 100 * TOLERANCE
    assert compare(case, model, right, W, b) > 100 * TOLERANCE
    assert compare(case, result, right, np.full_like(W, np.nan), b) == float("inf")
