"""The torch front end finds the cuts that the same network has in its ONNX export."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from blockfold.ir.torch_view import capture, view
from blockfold.tests.captures import (
    IDS,
    MASK,
    NETWORKS,
    Language,
    captured,
    chains,
    decomposed,
    described,
    from_onnx,
    from_torch,
    network,
)

QUICK = ("pre-norm", "convolutions", "cached")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS],
)
def test_both_front_ends_find_the_same_cuts(name: str) -> None:
    ours, theirs = from_torch(name), from_onnx(name)
    assert described(ours) == described(theirs)
    assert [len(a.chain.cuts) for a in chains(ours)] == [len(a.chain.cuts) for a in chains(theirs)]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("pre-norm", [["blocks.0", "blocks.1", "blocks.2"]]),
        ("post-norm", [["blocks.0", "blocks.1", "blocks.2"]]),
        ("convolutions", [["blocks.0", "blocks.1", "blocks.2", "blocks.3"]]),
        ("gated", [["1", "2", "3"]]),
    ],
)
def test_blocks_are_those_that_the_code_has(name: str, blocks: list[list[str]]) -> None:
    assert [[b.name for b in a.blocks] for a in chains(from_torch(name))] == blocks


def test_the_comparison_of_front_ends_can_fail() -> None:
    assert described(from_torch("pre-norm")) != described(from_torch("gated"))
    shorter = view(capture(Language(True, 2).eval(), (IDS, MASK)))
    assert described(shorter) != described(from_torch("pre-norm"))


def test_programs_in_other_dialects_have_the_same_cuts(tmp_path: Path) -> None:
    """Strictly captured, functional with fewer operators, and read back from a file."""
    program, (module, args, dynamic) = captured("convolutions"), network("convolutions")
    expected = described(from_torch("convolutions"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        strict = torch.export.export(module, args, dynamic_shapes=dynamic, strict=True)
        torch.export.save(program, tmp_path / "program.pt2")
        loaded = torch.export.load(tmp_path / "program.pt2")
    small = view(decomposed(program))
    assert described(view(strict)) == expected
    assert described(view(loaded)) == expected
    assert {"aten.convolution", "aten._native_batch_norm_legit_no_training"} <= {
        node.op for node in small.nodes
    }
    assert [b.name for b in chains(small)[0].blocks] == expected[0][1]
    assert [len(a.chain.cuts) for a in chains(small)] == [len(expected[0][0]) + 1]
