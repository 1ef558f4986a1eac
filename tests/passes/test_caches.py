"""Decoders with a cache: what goes with a block, what stays, and that the rest still generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import blockfold
from blockfold.calibration.latency import profile_from_data
from blockfold.calibration.sources import open_data
from blockfold.ir.errors import BadInput, Unsupported
from blockfold.ir.onnx_cache import find_caches
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.spans import Span, prove
from blockfold.passes.base import PassError, PassResult
from blockfold.passes.interface import DropInputs, DropOutputs
from blockfold.passes.pipeline import ALL_PASSES, Switches, rewrite
from blockfold.passes.replacement import Replacement
from blockfold.tests.decoders import PARTS, Decoder, cached_decoder, generate, steps_of
from blockfold.tests.networks import residual_mlp
from blockfold.tests.replacing import firsts, random_map, streams
from blockfold.tools.api import optimize_to
from blockfold.tools.results import Result

SETTINGS: dict[str, Any] = {"threads": 1, "provider": "cpu", "metric": "kl", "output": "logits"}
PROMPT = np.random.default_rng(5).integers(3, 30, (4, 5))


def names(kind: str, *blocks: int) -> tuple[str, ...]:
    return tuple(f"{kind}.{i}.{part}" for i in blocks for part in PARTS)


def without(
    model: onnx.ModelProto, block: int, *, exact: bool = True, switches: Switches = ALL_PASSES
) -> onnx.ModelProto:
    """The model with one block left out, or replaced by a random map."""
    graph, found = streams(model)
    (stream,) = (s for s in found if f"h{block}" in firsts(s.chain))
    cuts = firsts(stream.chain)
    start = cuts.index(f"h{block - 1}") if block else 0
    may_go = frozenset(cache.present for cache in find_caches(read(model)))
    span = prove(graph, stream, start, cuts.index(f"h{block}"), None, may_go)
    assert isinstance(span, Span), span
    replacement = Replacement(span, None if exact else random_map(8), 0.0)
    return rewrite(read(model), [replacement], {}, switches).model.proto


def graph_io(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    return {v.name for v in model.graph.input}, {v.name for v in model.graph.output}


def shapes(model: onnx.ModelProto) -> set[str]:
    return {node.input[0] for node in model.graph.node if node.op_type == "Shape"}


@pytest.mark.parametrize("block", range(3))
def test_the_caches_of_a_block_go_and_no_other(block: int) -> None:
    model = cached_decoder()
    made = without(model, block, exact=False)
    (inputs, outputs), (old_inputs, old_outputs) = graph_io(made), graph_io(model)
    assert old_inputs - inputs == set(names("past", block))
    assert old_outputs - outputs == set(names("present", block))
    assert list(made.graph.input) == [v for v in model.graph.input if v.name in inputs]
    assert list(made.graph.output) == [v for v in model.graph.output if v.name in outputs]


def test_the_length_of_what_is_remembered_is_asked_of_another_block() -> None:
    """Block 0's past told the places of all tokens; it is gone, and the places are the same."""
    model = cached_decoder()
    assert "past.0.key" in shapes(model)
    made = without(model, 0)
    assert shapes(made) == {"past.1.key", "ids"}
    one, other = Decoder(made, 4), Decoder(made, 4)
    whole = one.step(PROMPT)
    parts = [other.step(PROMPT[:, at : at + 1]) for at in range(5)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_in_steps_or_in_one_go_is_the_same_whatever_stands_in_the_block() -> None:
    made = without(cached_decoder(), 1, exact=False)
    tokens, scores = generate(made, PROMPT, 4)
    whole = Decoder(made, 4).step(np.concatenate([PROMPT, tokens[:, :-1]], axis=1))
    np.testing.assert_allclose(whole[:, -1:], scores, atol=1e-5)


def test_a_past_that_something_else_reads_stays() -> None:
    model = cached_decoder(peek=1)
    made = without(model, 1)
    assert graph_io(model)[0] - graph_io(made)[0] == {"past.1.value"}
    assert graph_io(model)[1] - graph_io(made)[1] == set(names("present", 1))


def test_a_length_that_no_other_input_has_keeps_its_past() -> None:
    """Of all blocks only one is left, whose window is not as long as all that was seen."""
    model = cached_decoder(1, affine=())
    made = without(model, 0)
    assert graph_io(made)[0] == {"ids", "past.0.key"}
    assert shapes(made) == {"past.0.key", "ids"}


def test_without_the_clean_up_all_inputs_stay() -> None:
    model = cached_decoder()
    made = without(model, 1, switches=Switches(frozenset({"cleanup"})))
    assert graph_io(made)[0] == graph_io(model)[0]
    assert graph_io(model)[1] - graph_io(made)[1] == set(names("present", 1))


def test_only_what_a_pass_declares_may_go() -> None:
    class Careless(DropOutputs):
        def run(self, model: OnnxModel) -> PassResult:
            return DropOutputs([*self.names, "present.2.key"]).run(model)

    class Forgetful(DropOutputs):
        def run(self, model: OnnxModel) -> PassResult:
            return PassResult(model, ())

    model = read(cached_decoder())
    for broken in (Careless, Forgetful):
        with pytest.raises(PassError, match="changed the model's outputs"):
            broken(["present.1.key"])(model)
    assert DropInputs(["ids", "past.1.key"])(model).model is model


@pytest.fixture(scope="module")
def planted() -> onnx.ModelProto:
    return cached_decoder()


@pytest.fixture(scope="module")
def result(planted: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The planted block found, on first steps with empty caches and on later ones."""
    path = tmp_path_factory.mktemp("cache") / "small.onnx"
    data = steps_of(planted, 60)
    return optimize_to(path, planted, data, remove=1, drop_cache=True, **SETTINGS)[0]


def test_a_planted_block_is_found_and_the_model_writes_the_same(
    planted: onnx.ModelProto, result: Result
) -> None:
    (decision,) = result.plan.decisions
    assert decision.name == "blocks.1"
    assert decision.dropped == names("present", 1)
    cache = result.plan.cache
    assert (cache.allowed, cache.still_read) == (True, ())
    assert (cache.inputs, cache.outputs) == (names("past", 1), names("present", 1))
    (tokens, scores), (made, others) = (
        generate(model, PROMPT, 8) for model in (planted, result.model)
    )
    np.testing.assert_array_equal(tokens, made)
    np.testing.assert_allclose(others, scores, atol=1e-4)


def saved(result: Result, planted: onnx.ModelProto, folder: Path) -> tuple[Path, Path]:
    original, new = folder / "big.onnx", folder / "small.onnx"
    onnx.save(planted, original)
    result.save(new)
    return original, new


def test_models_of_two_interfaces_are_compared_as_the_plan_declares(
    planted: onnx.ModelProto, result: Result, tmp_path: Path
) -> None:
    original, new = saved(result, planted, tmp_path)
    data = steps_of(planted, 40, seed=9)
    verified = blockfold.verify(original, new, data, threads=1, provider="cpu")
    assert verified.verdict.drop < 1e-6
    assert verified.verdict.output == "logits"
    assert blockfold.bench(original, new, data, threads=1, provider="cpu").ratio > 0
    with pytest.raises(BadInput, match="has lost it"):
        blockfold.verify(original, new, data, output="present.1.key", threads=1, provider="cpu")
    new.with_suffix(".plan.json").unlink()
    with pytest.raises(BadInput, match=r"cannot be compared: inputs past\.1\.key"):
        blockfold.verify(original, new, data, **SETTINGS)
    with pytest.raises(BadInput, match="different inputs"):
        blockfold.bench(original, new, data, threads=1, provider="cpu")


def test_a_plan_is_no_leave_for_what_it_does_not_declare(
    planted: onnx.ModelProto, result: Result, tmp_path: Path
) -> None:
    original, new = saved(result, planted, tmp_path)
    onnx.save(without(planted, 2), new)
    with pytest.raises(BadInput, match="different inputs"):
        blockfold.verify(original, new, steps_of(planted, 20), **SETTINGS)


def test_the_plan_makes_the_same_again(
    planted: onnx.ModelProto, result: Result, tmp_path: Path
) -> None:
    original, new = saved(result, planted, tmp_path)
    plan = new.with_suffix(".plan.json")
    again = blockfold.apply(original, plan)
    assert again.model.serialized() == new.read_bytes()
    text = plan.read_text()
    plan.write_text(text.replace('"surrogate": "affine"', '"surrogate": "affine + folded"', 1))
    edited = blockfold.apply(original, plan, steps_of(planted, 60), max_drop=0.5, threads=1)
    assert edited.plan.cache == result.plan.cache
    plan.write_text(text.replace('"allowed": true', '"allowed": false', 1))
    with pytest.raises(BadInput, match=r"cannot be replaced: the graph output 'present\.1\.key'"):
        blockfold.apply(original, plan, steps_of(planted, 60), threads=1)


def test_a_past_still_read_is_in_the_plan() -> None:
    model = cached_decoder(peek=1)
    made = blockfold.optimize(model, steps_of(model, 60), remove=1, drop_cache=True, **SETTINGS)
    assert made.plan.cache.inputs == ("past.1.value",)
    assert made.plan.cache.still_read == ("past.1.key",)


def attention_alone() -> onnx.ModelProto:
    """As the planted decoder, with no block half that makes no cache: one block of attention."""
    model = cached_decoder(1)
    graph = model.graph
    (head,) = (node for node in graph.node if "h0" in node.input)
    head.input[:] = ["a0" if name == "h0" else name for name in head.input]
    return rewrite(read(model), [], {}, ALL_PASSES).model.proto


def test_without_leave_it_is_refused_with_the_reason() -> None:
    model = attention_alone()
    with pytest.raises(
        Unsupported, match=r"the graph output 'present\.0\.key'.*--drop-cache"
    ) as no:
        blockfold.optimize(model, steps_of(model, 40), **SETTINGS)
    assert no.value.exit_code == 3
    assert blockfold.inspect(model, drop_cache=True).spans


def test_without_leave_the_interface_is_kept(planted: onnx.ModelProto) -> None:
    made = blockfold.optimize(planted, steps_of(planted, 60), remove=0.5, **SETTINGS)
    assert graph_io(made.model) == graph_io(planted)
    assert not made.plan.cache.allowed


def test_leave_changes_nothing_where_there_is_no_cache() -> None:
    model = residual_mlp()
    plain, given = (blockfold.inspect(model, drop_cache=leave) for leave in (False, True))
    assert plain.spans == given.spans


def test_the_output_that_is_judged_stays() -> None:
    model = cached_decoder()
    judged = SETTINGS | {"output": "present.1.key", "metric": "nmse"}
    made = blockfold.optimize(model, steps_of(model, 60), remove=1, drop_cache=True, **judged)
    assert "present.1.key" in graph_io(made.model)[1]


def test_the_shapes_to_time_at_belong_together() -> None:
    model = cached_decoder()
    with open_data(steps_of(model, 9), read(model).inputs) as data:
        feeds = profile_from_data(data, read(model).inputs, {}, None).feeds
    assert (feeds["ids"].shape[1], feeds["past.0.key"].shape[1]) in ((6, 0), (1, 6))
