"""Options that cannot be, and places that cannot be written, are one clear line."""

from __future__ import annotations

import os

import pytest

from blockfold.calibration.runtime import PROVIDERS, choose_runtime
from blockfold.tests.tools.harness import (
    CommandLine,
    unsure,
    untouched,
)
from blockfold.tests.tools.place import (
    BAD_INPUT,
    Case,
    Cases,
    Place,
    Words,
    assert_one_line,
)

case = Cases()


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


@case(BAD_INPUT, "out.pt2", "only a torch module", "OUT.onnx")
def target_is_a_program_of_torch(place: Place) -> Words:
    return place.optimize("-o", place.folder / "out.pt2")


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


for option, said in OPTIONS:
    case(BAD_INPUT, *said, name=option)(_with_options(option))


@case(BAD_INPUT, "missing option", "-o")
def no_target(place: Place) -> Words:
    return ["optimize", place.model, "--data", place.data]


@case(BAD_INPUT, "missing argument", "MODEL")
def no_model(_place: Place) -> Words:
    return ["inspect"]


@case(BAD_INPUT, "no such command", "optimise")
def unknown_verb(_place: Place) -> Words:
    return ["optimise"]


test_it_is_one_clear_line = case.test()


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
