"""What was solved on a module's ONNX export, made in the module: both compute the same."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from blockfold.calibration.runtime import Runner, Runtime
from blockfold.ir.errors import Unsupported
from blockfold.ir.onnx_file import OnnxModel
from blockfold.ir.torch_module import CompressedModule
from blockfold.passes.layout import anatomies
from blockfold.passes.pipeline import ALL_PASSES, rewrite
from blockfold.passes.recipe import Healing, Recipe
from blockfold.passes.replacement import Replacement
from blockfold.passes.surrogates import Form, Wish
from blockfold.passes.transplant import transplant
from blockfold.tests.captures import network
from blockfold.tests.networks import Arrays
from blockfold.tests.walking import walking
from blockfold.tools.modules import Captured, captured

CLOSE = 1e-4
REPAIRED, ALONE = Healing(), Healing(refit=None)
RUNTIME = Runtime(threads=1)
TOKENS: tuple[Form, ...] = (
    "identity",
    "folded",
    "affine",
    "affine + context",
    "affine + folded",
    "affine + folded + context",
)
MAPS: tuple[Form, ...] = ("identity", "folded", "affine", "conv")
CASES: dict[str, tuple[str, tuple[Form, ...]]] = {
    "pre-norm": ("blocks.1", TOKENS),
    "post-norm": ("blocks.1", TOKENS),
    "gated": ("2", ("affine", "affine + folded")),
    "convolutions": ("blocks.1", MAPS),
    "downsampling": ("blocks.3", ("conv",)),
}


def data_of(name: str, rows: int) -> Arrays:
    """Random samples; a third of the sentences end in padding."""
    rng = np.random.default_rng(rows)
    if name in ("pre-norm", "post-norm"):
        mask = np.ones((rows, 6), np.int64)
        mask[::3, 4:] = 0
        return {"ids": rng.integers(0, 11, (rows, 6)), "mask": mask}
    shape = (rows, 6, 5) if name == "gated" else (rows, 3, 16, 16)
    key = "input" if name == "gated" else "image"
    return {key: rng.standard_normal(shape).astype(np.float32)}


@cache
def made(name: str) -> Captured:
    module, args, dynamic = network("convolutions" if name == "downsampling" else name)
    for parameter in module.parameters():
        parameter.data *= 0.3
    return captured(module, None, args, dynamic)


def outputs(module: nn.Module, arrays: Arrays) -> np.ndarray:
    with torch.no_grad():
        result: Any = module(*map(torch.from_numpy, arrays.values()))
    return np.asarray(result)


def solved(
    found: Captured, name: str, block: str, form: Form, healing: Healing = REPAIRED
) -> tuple[Replacement, ...]:
    with walking(found.onnx, data_of(name, 240)) as (_, walk, spans):
        (fitted,) = walk([Recipe((Wish(spans[block], form),), healing)])
        fitted.close()
    return fitted.replacements


def transplanted(found: Captured, replacements: tuple[Replacement, ...]) -> CompressedModule:
    return transplant(found.program, found.export(RUNTIME), replacements, found.feeds)


@pytest.mark.parametrize(
    ("name", "form"), [(name, form) for name, (_, forms) in CASES.items() for form in forms]
)
def test_both_front_ends_make_the_same_model(name: str, form: Form) -> None:
    """Equal outputs on fresh rows; where all parts are in play, an equally good export, too."""
    found, (block, forms) = made(name), CASES[name]
    replacements = solved(found, name, block, form)
    module = transplanted(found, replacements)
    rewritten = rewrite(found.onnx, replacements, {}, ALL_PASSES).model
    fresh = data_of(name, 31)
    (theirs,) = Runner(rewritten, RUNTIME)(fresh).values()
    ours = outputs(module, fresh)
    size = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= CLOSE * size
    before = np.abs(theirs - next(iter(Runner(found.onnx, RUNTIME)(fresh).values()))).max()
    assert before > CLOSE * size, "the replacement changes nothing: nothing was compared"
    if form != forms[-1]:
        return
    again = captured(module, None, *found.inputs[:1], found.dynamic_shapes).onnx
    assert histogram(again) == histogram(rewritten)
    assert floats(again) == floats(rewritten)
    (exported,) = Runner(again, RUNTIME)(fresh).values()
    assert np.abs(exported - theirs).max() <= CLOSE * size


def histogram(model: OnnxModel) -> Counter[str]:
    return Counter(node.op for node in model.graph.nodes)


def floats(model: OnnxModel) -> int:
    """Weights stored; lone numbers may be spelled in several ways."""
    weights = model.graph.constants.values()
    return sum(w.elements for w in weights if w.dtype == "float32" and w.elements > 1)


def test_no_tensor_of_a_removed_block_is_left_and_no_other_goes() -> None:
    found = made("pre-norm")
    before = set(found.program.state_dict)
    module = transplanted(found, solved(found, "pre-norm", "blocks.1", "affine"))
    after = set(module.state_dict())
    assert not [name for name in after if name.startswith("blocks.1.")]
    gone = {name for name in before if name.startswith("blocks.1.")}
    assert before - gone <= after
    assert module.get_parameter("head.weight") is module.get_parameter("tokens.weight")


def test_a_weight_that_another_layer_shares_is_not_changed() -> None:
    module, args, dynamic = network("pre-norm")
    weight = module.get_parameter("blocks.0.linear2.weight")
    module.get_submodule("blocks.2.linear2").register_parameter("weight", cast(Any, weight))
    found = captured(module, None, args, dynamic)
    old = weight.detach().clone()
    replacements = solved(found, "pre-norm", "blocks.1", "folded", ALONE)
    made = transplanted(found, replacements)
    assert torch.equal(made.get_parameter("blocks.2.linear2.weight"), old)
    fresh = data_of("pre-norm", 9)
    rewritten = rewrite(found.onnx, replacements, {}, ALL_PASSES)
    (theirs,) = Runner(rewritten.model, RUNTIME)(fresh).values()
    assert np.abs(outputs(made, fresh) - theirs).max() <= CLOSE * np.abs(theirs).max()


def test_a_plan_of_another_network_has_no_place() -> None:
    """The comparison of the two graphs can fail: here the export is of other weights."""
    found, other = made("pre-norm"), made.__wrapped__("pre-norm")
    replacements = solved(found, "pre-norm", "blocks.1", "affine")
    for tensor in other.program.state_dict.values():
        tensor.data = tensor.data * 1.5
    with pytest.raises(Unsupported, match="do not agree on"):
        transplant(other.program, found.export(RUNTIME), replacements, found.feeds)


def test_streams_of_unequal_length_are_not_matched_blindly() -> None:
    found, shorter = made("pre-norm"), made("gated")
    replacements = solved(found, "pre-norm", "blocks.1", "affine")
    with pytest.raises(Unsupported, match="do not agree on"):
        transplant(shorter.program, found.export(RUNTIME), replacements, None)


def test_the_streams_of_the_export_are_those_of_the_plain_model() -> None:
    found = made("convolutions")
    assert found.export(RUNTIME).streams == anatomies(found.export(RUNTIME).model)
