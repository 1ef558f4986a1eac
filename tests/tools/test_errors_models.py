"""A model that is none, damaged, or offers nothing: one clear line, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from blockfold.tests.networks import densenet_like, labelled
from blockfold.tests.tools.harness import (
    SAMPLES,
    network,
)
from blockfold.tests.tools.place import (
    BAD_INPUT,
    NOT_MET,
    UNSUPPORTED,
    Cases,
    Place,
    Words,
)

case = Cases()


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


@case(BAD_INPUT, "'total'", "no axis of samples", "--output")
def output_is_one_number_for_all_samples(place: Place) -> Words:
    proto = network()
    logits = proto.graph.output[0].name
    proto.graph.node.append(helper.make_node("ReduceSum", [logits], ["total"], keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, []))
    return place.optimize("--output", "total", "--metric", "cosine", model=place.onnx(proto))


@case(BAD_INPUT, "different inputs or outputs", "compared")
def bench_two_strangers(place: Place) -> Words:
    proto = network()
    proto.graph.input[0].name = "z"
    for node in proto.graph.node:
        node.input[:] = ["z" if name == "x" else name for name in node.input]
    return ["bench", place.model, place.onnx(proto)]


@case(BAD_INPUT, "model.onnx", "too few", "--split")
def rank_on_too_few_samples(place: Place) -> Words:
    data = place.npz(**place.arrays(40))
    return ["rank", place.model, "--data", data, "--split", "5/45/50"]


@case(NOT_MET, "--max-drop 0.05", "damage", "nearest", "block")
def every_block_matters(place: Place) -> Words:
    proto = network(planted=None)
    data = place.npz(**labelled(proto, SAMPLES))
    return place.optimize(model=place.onnx(proto), data=data)


@case(NOT_MET, "--speedup 1000", "no plan that was tried reaches it", "nearest")
def speed_is_out_of_reach(place: Place) -> Words:
    return place.optimize("--speedup", "1000")


test_it_is_one_clear_line = case.test()
