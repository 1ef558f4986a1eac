"""Everything a person can get wrong is one clear line with the right exit code; nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from blockfold.calibration.runtime import PROVIDERS, choose_runtime
from blockfold.passes.bounds import smallest_n
from blockfold.tests.networks import TOKENS, densenet_like, labelled
from blockfold.tests.tools.harness import (
    SAMPLES,
    WIDTH,
    CommandLine,
    Ran,
    network,
    unsure,
    untouched,
)
from blockfold.tests.tools.place import (
    BAD_INPUT,
    NOT_MET,
    UNSUPPORTED,
    Place,
    Words,
    assert_one_line,
)

Case = Callable[[Place], Words]
CASES: list[Any] = []


def case(code: int, *words: str) -> Callable[[Case], Case]:
    """Registers a command that must end with this code and a line holding these words."""

    def register(make: Case) -> Case:
        CASES.append(pytest.param(make, code, words, id=make.__name__))
        return make

    return register


# --- models


@case(BAD_INPUT, "text.onnx", "not an ONNX model", "export")
def model_is_text(place: Place) -> Words:
    return place.optimize(model=place.file("text.onnx", b"hello, I am no model\n" * 9))


@case(BAD_INPUT, "empty.onnx", "not an ONNX model", "export")
def model_is_empty(place: Place) -> Words:
    return place.optimize(model=place.file("empty.onnx", b""))


@case(BAD_INPUT, "half.onnx", "truncated", "copy")
def model_is_truncated(place: Place) -> Words:
    content = place.model.read_bytes()
    return place.optimize(model=place.file("half.onnx", content[: len(content) // 2]))


@case(BAD_INPUT, "nowhere.onnx", "cannot read the model", "No such file")
def model_is_missing(place: Place) -> Words:
    return place.optimize(model=place.folder / "nowhere.onnx")


@case(BAD_INPUT, "cannot read the model", "directory")
def model_is_a_folder(place: Place) -> Words:
    return place.optimize(model=place.folder)


@case(BAD_INPUT, "other.onnx", "phantom")
def model_is_invalid(place: Place) -> Words:
    proto = network()
    proto.graph.node[0].input[0] = "phantom"
    return place.optimize(model=place.onnx(proto))


def external(place: Place, location: str, length: int | None = None) -> Path:
    """The network, one weight of which lies in a file of its own."""
    proto = network()
    weight = proto.graph.initializer[0]
    content = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(content)))):
        weight.external_data.add(key=key, value=value)
    if length is not None:
        (place.folder / location).write_bytes(content[:length])
    return place.onnx(proto)


@case(BAD_INPUT, "other.onnx", "'weights.bin'", "missing", "beside the model")
def external_data_is_missing(place: Place) -> Words:
    return place.optimize(model=external(place, "weights.bin"))


@case(BAD_INPUT, "'weights.bin'", "ends before", "copy it again")
def external_data_is_truncated(place: Place) -> Words:
    return place.optimize(model=external(place, "weights.bin", length=5))


@case(BAD_INPUT, "'../weights.bin'", "outside the model's folder", "beside the model")
def external_data_lies_above(place: Place) -> Words:
    inner = place.folder / "inner"
    inner.mkdir()
    path = external(place, "../weights.bin")
    (place.folder / "weights.bin").write_bytes(bytes(999))
    return place.optimize(model=path.rename(inner / "other.onnx"))


@case(BAD_INPUT, "outside the model's folder", "beside the model")
def external_data_is_absolute(place: Place) -> Words:
    path = place.file("weights.bin", bytes(999))
    return place.optimize(model=external(place, str(path)))


@case(BAD_INPUT, "outside the model's folder", "beside the model")
def external_data_is_a_link_out(place: Place) -> Words:
    inner = place.folder / "inner"
    inner.mkdir()
    (inner / "weights.bin").symlink_to(place.file("secret", bytes(999)))
    path = external(place, "weights.bin")
    return place.optimize(model=path.rename(inner / "other.onnx"))


@case(UNSUPPORTED, "no cut points", "logits", "no block to replace")
def model_has_no_stream(place: Place) -> Words:
    proto = network()
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    proto.graph.input[0].name = "whole"
    cast = helper.make_node("Cast", ["whole"], ["x"], to=onnx.TensorProto.FLOAT)
    proto.graph.node.insert(0, cast)
    arrays = place.arrays()
    data = place.npz(whole=arrays["x"].astype(np.int64), labels=arrays["labels"])
    return place.optimize(model=place.onnx(proto), data=data)


@case(UNSUPPORTED, "no span can be replaced", "differ in shape", "Concat node")
def model_has_no_two_cuts_of_one_shape(place: Place) -> Words:
    proto = densenet_like()
    data = place.npz(**labelled(proto, SAMPLES))
    return place.optimize(model=place.onnx(proto), data=data)


@case(UNSUPPORTED, "onnxruntime cannot load", "nobody.knows", "--custom-ops")
def model_has_an_unknown_operator(place: Place) -> Words:
    proto = network()
    proto.graph.node[2].domain = "nobody.knows"
    proto.opset_import.add(domain="nobody.knows", version=1)
    return place.optimize(model=place.onnx(proto))


@case(NOT_MET, "--max-drop 0.05", "damage", "nearest", "block")
def every_block_matters(place: Place) -> Words:
    proto = network(planted=None)
    data = place.npz(**labelled(proto, SAMPLES))
    return place.optimize(model=place.onnx(proto), data=data)


@case(NOT_MET, "--speedup 1000", "no plan that was tried reaches it", "nearest")
def speed_is_out_of_reach(place: Place) -> Words:
    return place.optimize("--speedup", "1000")


# --- data


@case(BAD_INPUT, "nowhere.npz", "no such file")
def data_is_missing(place: Place) -> Words:
    return place.optimize(data=place.folder / "nowhere.npz")


@case(BAD_INPUT, "text.npz", "cannot be read", "damaged or truncated")
def data_is_text(place: Place) -> Words:
    return place.optimize(data=place.file("text.npz", b"hello"))


@case(BAD_INPUT, "half.npz", "cannot be read", "damaged or truncated")
def data_is_truncated(place: Place) -> Words:
    content = place.data.read_bytes()
    return place.optimize(data=place.file("half.npz", content[: len(content) // 2]))


@case(BAD_INPUT, "given.npz", "'y'", "the model takes 'x'", "rename")
def data_names_another_input(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(y=arrays["x"], labels=arrays["labels"]))


@case(BAD_INPUT, "given.npz", "missing 'x'", "add")
def data_lacks_an_input(place: Place) -> Words:
    return place.optimize(data=place.npz(labels=place.arrays()["labels"]))


@case(BAD_INPUT, "given.npz", "'x'", "rank 2", "rank 3", "reshape")
def data_has_the_wrong_rank(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(**arrays | {"x": arrays["x"].mean(1)}))


@case(BAD_INPUT, "given.npz", "'x'", f"{WIDTH + 1}", f"{TOKENS}, {WIDTH}", "reshape")
def data_has_the_wrong_width(place: Place) -> Words:
    wide = np.zeros((SAMPLES, TOKENS, WIDTH + 1), np.float32)
    return place.optimize(data=place.npz(**place.arrays() | {"x": wide}))


@case(BAD_INPUT, "given.npz", "'x'", "int64", "float32", "convert")
def data_has_the_wrong_dtype(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(**arrays | {"x": arrays["x"].astype(np.int64)}))


@case(BAD_INPUT, "given.npz", "'x", "objects", "plain numbers")
def data_holds_objects(place: Place) -> Words:
    things = np.array([{"text": 1}] * SAMPLES, dtype=object)
    return place.optimize(data=place.npz(**place.arrays() | {"x": things}))


@case(BAD_INPUT, "given.npz", "'x'", "NaN", "sample 17", "repair")
def data_holds_nan(place: Place) -> Words:
    arrays = place.arrays()
    arrays["x"][17, 1, 2] = np.nan
    return place.optimize(data=place.npz(**arrays))


@case(BAD_INPUT, "given.npz", "'x'", "Inf", "sample 3", "repair")
def data_holds_inf(place: Place) -> Words:
    arrays = place.arrays()
    arrays["x"][3, 0, 0] = -np.inf
    return place.optimize(data=place.npz(**arrays))


@case(BAD_INPUT, "NaN or Inf", "check the model and the data")
def data_overflows_inside(place: Place) -> Words:
    arrays = place.arrays()
    arrays["x"][5] = 3e38
    return place.optimize(data=place.npz(**arrays))


@case(BAD_INPUT, "given.npz", "no samples")
def data_holds_no_samples(place: Place) -> Words:
    return place.optimize(data=place.npz(**place.arrays(0)))


@case(BAD_INPUT, "3 samples", "25/25/50", "at least 4", "give more")
def data_is_too_short_to_split(place: Place) -> Words:
    return place.optimize(data=place.npz(**place.arrays(3)))


@case(BAD_INPUT, "0.05", f"at least {smallest_n(0.05, paired=True)}", "holds 20", "or allow more")
def data_is_too_short_to_certify(place: Place) -> Words:
    return place.optimize(data=place.npz(**place.arrays(40)))


@case(BAD_INPUT, "given.npz", "'labels' has 399", "400")
def labels_are_too_few(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(x=arrays["x"], labels=arrays["labels"][1:]))


@case(BAD_INPUT, "'labels'", "<U4", "not numbers")
def labels_are_text(place: Place) -> Words:
    arrays = place.arrays()
    named = np.array(["text"] * SAMPLES)
    return place.optimize(data=place.npz(x=arrays["x"], labels=named))


@case(BAD_INPUT, "--metric accuracy", "needs labels", "`labels`")
def accuracy_without_labels(place: Place) -> Words:
    return place.optimize("--metric", "accuracy", data=place.npz(x=place.arrays()["x"]))


@case(BAD_INPUT, "--metric perplexity", "needs labels", "`labels`")
def perplexity_without_labels(place: Place) -> Words:
    return place.optimize("--metric", "perplexity", data=place.npz(x=place.arrays()["x"]))


@case(BAD_INPUT, "--metric perplexity", "labels are float64", "token ids")
def perplexity_of_fractions(place: Place) -> Words:
    data = place.npz(**place.arrays() | {"labels": np.full(SAMPLES, 0.5)})
    return place.optimize("--metric", "perplexity", data=data)


@case(BAD_INPUT, "--metric perplexity", "label 99", "vocabulary", "token ids")
def perplexity_of_unknown_tokens(place: Place) -> Words:
    data = place.npz(**place.arrays() | {"labels": np.full(SAMPLES, 99)})
    return place.optimize("--metric", "perplexity", data=data)


@case(BAD_INPUT, "--metric perplexity", "no label counts", "token ids")
def perplexity_of_no_tokens(place: Place) -> Words:
    data = place.npz(**place.arrays() | {"labels": np.full(SAMPLES, -100)})
    return place.optimize("--metric", "perplexity", data=data)


@case(BAD_INPUT, "--metric accuracy", "labels of shape", "classes")
def labels_of_another_shape(place: Place) -> Words:
    arrays = place.arrays()
    twice = np.stack([arrays["labels"]] * 2, 1)
    return place.optimize("--metric", "accuracy", data=place.npz(x=arrays["x"], labels=twice))


@case(BAD_INPUT, "no_such_module:batches", "importing")
def data_module_is_missing(place: Place) -> Words:
    return place.optimize(data=Path("no_such_module:batches"))


@case(BAD_INPUT, "--data", "--random-data")
def no_data_at_all(place: Place) -> Words:
    return ["optimize", place.model, "-o", place.target]


@case(BAD_INPUT, "--data", "--random-data")
def data_and_random_data(place: Place) -> Words:
    return place.optimize("--random-data", "99")


@case(BAD_INPUT, "--data", "--random-data")
def verify_without_data(place: Place) -> Words:
    return ["verify", place.model, place.small]


# --- plans


def widen(plan: dict[str, Any]) -> None:
    plan["decisions"][0]["blocks"] = 1.5


@case(BAD_INPUT, "another model", "give the original")
def plan_of_another_model(place: Place) -> Words:
    return place.apply(place.plan(), model=place.onnx(network(seed=5)))


@case(BAD_INPUT, "another model", "give the original")
def edited_plan_of_another_model(place: Place) -> Words:
    other = place.onnx(network(seed=5))
    return place.apply(place.plan(widen), "--data", place.data, model=other)


@case(BAD_INPUT, "p.plan.json", "edited", "give --data")
def edited_plan_without_data(place: Place) -> Words:
    return place.apply(place.plan(widen))


@case(BAD_INPUT, "blocks.2", "'elsewhere'", "inspect")
def edited_plan_names_an_unknown_value(place: Place) -> Words:
    plan = place.plan(lambda content: content["decisions"][0].update(exit="elsewhere"))
    return place.apply(plan, "--data", place.data)


@case(BAD_INPUT, "judged by 'wicked:f'", "no plan may load code", "--metric")
def plan_names_code(place: Place) -> Words:
    plan = place.plan(lambda content: content.update(metric="wicked:f"))
    return ["verify", place.model, place.small, "--plan", plan, "--data", place.data]


@case(BAD_INPUT, "p.plan.json", "cannot read the plan", "No such file")
def plan_is_missing(place: Place) -> Words:
    return place.apply(place.folder / "p.plan.json")


@case(BAD_INPUT, "p.plan.json", "not a plan")
def plan_is_broken(place: Place) -> Words:
    plan = place.plan()
    plan.write_bytes(plan.read_bytes()[:-20])
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.json", "not a plan")
def plan_is_not_text(place: Place) -> Words:
    plan = place.plan()
    plan.write_bytes(bytes(range(256)))
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.json", "not a plan", "decisions")
def plan_lacks_a_key(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content.pop("decisions")))


@case(BAD_INPUT, "p.plan.json", "not a plan", "surprise", "not permitted")
def plan_has_an_unknown_key(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content.update(surprise=1)))


@case(BAD_INPUT, "p.plan.json", "not a plan", "decisions.0.surprise", "not permitted")
def decision_has_an_unknown_key(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content["decisions"][0].update(surprise=1)))


@case(BAD_INPUT, "p.plan.json", "not a plan", "schema_version")
def plan_of_another_schema(place: Place) -> Words:
    return place.apply(place.plan(lambda content: content.update(schema_version=2)))


@case(BAD_INPUT, "p.plan.safetensors", "another plan", "together")
def tensors_were_tampered_with(place: Place) -> Words:
    plan = place.plan()
    tensors = plan.with_suffix(".safetensors")
    content = bytearray(tensors.read_bytes())
    content[-3] ^= 1
    tensors.write_bytes(content)
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.safetensors", "broken", "copy")
def tensors_are_truncated(place: Place) -> Words:
    plan = place.plan()
    tensors = plan.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-9])
    return place.apply(plan)


@case(BAD_INPUT, "p.plan.safetensors", "cannot read", "together")
def tensors_are_missing(place: Place) -> Words:
    plan = place.plan()
    plan.with_suffix(".safetensors").unlink()
    return place.apply(plan)


@case(BAD_INPUT, "nowhere.json", "cannot read the plan", "No such file")
def costs_are_missing(place: Place) -> Words:
    return place.optimize("--costs", place.folder / "nowhere.json")


@case(BAD_INPUT, "--costs", "no measured costs")
def costs_of_a_plan_without_any(place: Place) -> Words:
    plan = place.plan(lambda content: content.update(costs=None))
    return place.optimize("--costs", plan)


@case(BAD_INPUT, "different inputs", "compared")
def verify_two_strangers(place: Place) -> Words:
    proto = network()
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "scores"
    return ["verify", place.model, place.onnx(proto), "--data", place.data]


# --- where to write


@case(BAD_INPUT, "file/out.onnx", "cannot write", "choose another place")
def target_lies_under_a_file(place: Place) -> Words:
    return place.optimize("-o", place.file("file", b"") / "out.onnx")


@case(BAD_INPUT, "nowhere/out.onnx", "cannot write", "choose another place")
def target_folder_is_missing(place: Place) -> Words:
    return place.optimize("-o", place.folder / "nowhere" / "out.onnx")


@case(BAD_INPUT, "is a folder", "name of a file")
def target_is_a_folder(place: Place) -> Words:
    return place.optimize("-o", place.folder)


@case(BAD_INPUT, "model.onnx", "is an input of this run", "-o")
def target_is_the_model(place: Place) -> Words:
    return place.optimize("-o", place.model)


@case(BAD_INPUT, "link.onnx", "is an input of this run", "-o")
def target_is_a_link_to_the_model(place: Place) -> Words:
    link = place.folder / "link.onnx"
    link.symlink_to(place.model)
    return place.optimize("-o", link)


@case(BAD_INPUT, "given.npz", "is an input of this run", "-o")
def target_is_the_data(place: Place) -> Words:
    own = place.npz(**place.arrays())
    return place.optimize("-o", own, data=own)


@case(BAD_INPUT, "p.plan.json", "plan", "-o")
def target_is_the_plan(place: Place) -> Words:
    plan = place.plan()
    return place.apply(plan, "-o", plan)


@case(BAD_INPUT, "is an input of this run", "-o")
def apply_over_the_model(place: Place) -> Words:
    own = place.file("own.onnx", place.model.read_bytes())
    return place.apply(place.plan(), "-o", own, model=own)


@case(BAD_INPUT, "nowhere/out.onnx", "cannot write")
def apply_into_a_missing_folder(place: Place) -> Words:
    return place.apply(place.plan(), "-o", place.folder / "nowhere" / "out.onnx")


# --- options

OPTIONS: list[tuple[str, list[str]]] = [
    ("--max-drop 3", ["--max-drop", "'3'", "1% or 0.01"]),
    ("--max-drop 1", ["--max-drop", "'1'", "1% or 0.01"]),
    ("--max-drop 0", ["--max-drop", "'0'", "1% or 0.01"]),
    ("--max-drop 0%", ["--max-drop", "'0%'", "1% or 0.01"]),
    ("--max-drop -1%", ["--max-drop", "'-1%'", "1% or 0.01"]),
    ("--max-drop abc", ["--max-drop", "'abc'", "1% or 0.01"]),
    ("--max-drop nan", ["--max-drop", "'nan'", "1% or 0.01"]),
    ("--max-drop ..", ["--max-drop", "'..'", "1% or 0.01"]),
    ("--speedup 0.9", ["--speedup 0.9", "above 1", "1.3"]),
    ("--speedup nan", ["--speedup nan", "above 1", "1.3"]),
    ("--speedup fast", ["--speedup", "'fast'"]),
    ("--remove 0", ["--remove 0", "positive number of blocks"]),
    ("--remove -2", ["--remove -2", "positive number of blocks"]),
    ("--max-size 0", ["--max-size 0", "positive number of bytes"]),
    ("--max-size huge", ["--max-size", "'huge'", "1.5MB"]),
    ("--split 50/50", ["split", "'50/50'", "25/25/50"]),
    ("--split 50/30/30", ["split", "50/30/30", "25/25/50"]),
    ("--split 100/0/0", ["split", "100/0/0", "25/25/50"]),
    ("--split a/b/c", ["split", "a/b/c", "25/25/50"]),
    ("--metric beauty", ["--metric beauty", "accuracy", "perplexity", "module:attribute"]),
    ("--metric nowhere:f", ["nowhere:f", "importing module 'nowhere' failed"]),
    ("--metric numpy:argmux", ["numpy:argmux", "no 'argmux'", "is it 'argmax'"]),
    ("--metric numpy:pi", ["--metric numpy:pi", "is a float", "give a function"]),
    ("--metric operator:neg", ["--metric operator:neg", "calling it failed", "TypeError"]),
    ("--metric operator:is_", ["--metric operator:is_", "shape ()", "one for each"]),
    (f"--metric {unsure.__module__}:unsure", [":unsure", "NaN", "give finite scores"]),
    ("--output nowhere", ["--output nowhere", "there is logits"]),
    ("--mask nowhere", ["mask 'nowhere'", "no such input", "'x'"]),
    ("--mask x", ["mask 'x'", "float32", "(rows, length)"]),
    ("--profile depth=3", ["--profile depth", "there is batch"]),
    ("--profile batch=0", ["--profile", "batch=0", "positive"]),
    ("--profile batch", ["--profile", "'batch'", "key=value"]),
    ("--provider abacus", ["--provider abacus", "it knows cpu", "CPUExecutionProvider"]),
    ("--provider-option fast", ["--provider-option", "'fast'", "key=value"]),
    ("--custom-ops nowhere.so", ["--custom-ops nowhere.so", "no such file"]),
    ("--skip beauty", ["--skip", "beauty", "cleanup"]),
    ("--threads -1", ["--threads", "-1"]),
    ("--batch 0", ["--batch", "0"]),
    ("--seed -1", ["--seed", "-1"]),
    ("--wrong 3", ["--wrong", "no such option"]),
    ("surplus", ["surplus", "unexpected"]),
]


def _with_options(text: str) -> Case:
    return lambda place: place.optimize(*text.split())


CASES += [pytest.param(_with_options(text), BAD_INPUT, words, id=text) for text, words in OPTIONS]


@case(BAD_INPUT, "missing option", "-o")
def no_target(place: Place) -> Words:
    return ["optimize", place.model, "--data", place.data]


@case(BAD_INPUT, "missing argument", "MODEL")
def no_model(_place: Place) -> Words:
    return ["inspect"]


@case(BAD_INPUT, "no such command", "optimise")
def unknown_verb(_place: Place) -> Words:
    return ["optimise"]


@pytest.mark.parametrize(("make", "code", "words"), CASES)
def test_bad_input_is_one_clear_line(
    make: Case, code: int, words: Sequence[str], place: Place, command: CommandLine
) -> None:
    arguments = make(place)
    with untouched(place.folder, place.model.parent, place.small.parent):
        ran = command(*arguments)
        line = assert_one_line(ran, code, words)
        assert ran.out == ""
        # and once more for a program
        ran = command(*arguments, "--json")
    assert_one_line(ran, code, words)
    assert ran.document.keys() == {"error", "exit_code"}
    assert ran.document["exit_code"] == code
    if code == BAD_INPUT:  # other lines hold measured figures
        assert ran.document["error"] == line


def test_the_same_without_the_fault_succeeds(place: Place, command: CommandLine) -> None:
    """Else the cases above could fail for some reason that all of them share."""
    with pytest.raises(AssertionError, match=r"came or went"), untouched(place.folder):
        assert command(*place.optimize()).code == 0
    assert command(*place.apply(place.plan())).code == 0


def test_a_line_is_checked_for_its_words() -> None:
    ran = Ran(2, "", "blockfold: x.npz: holds nothing\n")
    assert assert_one_line(ran, 2, ["nothing"]) == "x.npz: holds nothing"
    for bad, code, words in [
        (ran, 1, ["nothing"]),
        (ran, 2, ["something"]),
        (Ran(2, "", "x.npz: holds nothing\n"), 2, []),
        (Ran(2, "", ran.err * 2), 2, []),
        (Ran(2, "", ""), 2, []),
    ]:
        with pytest.raises((AssertionError, ValueError)):
            assert_one_line(bad, code, words)


def test_an_unwritable_folder(place: Place, command: CommandLine) -> None:
    locked = place.folder / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):
        pytest.skip("permissions do not bind this user")
    with untouched(place.folder):
        ran = command(*place.optimize("-o", locked / "out.onnx"))
    assert_one_line(ran, BAD_INPUT, ["locked/out.onnx", "cannot write", "choose another place"])


def test_cuda_where_there_is_none(place: Place, command: CommandLine) -> None:
    if choose_runtime().provider == PROVIDERS["cuda"]:
        pytest.skip("CUDA works here")
    with untouched(place.folder):
        ran = command(*place.optimize("--provider", "cuda"))
    assert_one_line(ran, BAD_INPUT, ["--provider cuda", "cpu"])
