"""Files: whatever is wrong with one is a BadInput of one line, and writing is all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from blockfold.ir import onnx_file
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read, write
from blockfold.tests.networks import compare, residual_mlp, run, samples, save_external


def refused(source: Path | onnx.ModelProto) -> str:
    """The one line that reading the source is refused with."""
    with pytest.raises(BadInput) as caught:
        read(source)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"hello world", b"\x08\x07", b'{"a": 1}', bytes(1000), b"PK\x03\x04" + bytes(50)],
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    line = refused(path)
    assert line.startswith(f"{path}: not an ONNX model")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "cannot read the model: No such file" in refused(tmp_path / "none.onnx")
    assert "cannot read the model: Is a directory" in refused(tmp_path)


def test_a_model_without_a_graph_is_refused() -> None:
    assert refused(onnx.ModelProto()).startswith("the model given: not an ONNX model")


def test_a_truncated_file_is_refused_or_whole(tmp_path: Path) -> None:
    """Cut anywhere: in the weights, between fields, in the last byte."""
    path = tmp_path / "model.onnx"
    content = residual_mlp(1, d=4).SerializeToString()
    sizes = {*range(60), *range(60, len(content), 37), *range(len(content) - 60, len(content))}
    refusals = 0
    for size in sorted(sizes):
        path.write_bytes(content[:size])
        try:
            model = read(path)
        except BadInput as error:
            assert str(path) in str(error)
            refusals += 1
        else:
            onnx.checker.check_model(model.proto)
            assert model.graph.outputs == ("logits",)
    assert refusals > 0.9 * len(sizes)
    path.write_bytes(content)
    assert read(path).serialized() == content


def test_flipped_bytes_are_refused_or_read(tmp_path: Path) -> None:
    """Hostile or damaged files raise BadInput and nothing else."""
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    content = residual_mlp(1, d=4).SerializeToString()
    others = set()
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            assert read(path).graph is not None
        except BadInput:
            continue
        except Exception as error:  # any other kind is what this test is about
            others.add(type(error).__name__)
    assert not others


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    model = residual_mlp(1)
    model.graph.node[1].input[0] = "made by no one"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    line = refused(path)
    assert line.startswith(f"{path}: not a valid ONNX model")
    assert "made by no one" in line


def test_a_checker_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does of names that are no text, in some environments."""

    def refuse(_proto: onnx.ModelProto) -> None:
        raise onnx.checker.ValidationError("")

    monkeypatch.setattr("blockfold.ir.onnx_file.check", refuse)
    path = tmp_path / "model.onnx"
    path.write_bytes(residual_mlp(1).SerializeToString())
    assert "not a valid ONNX model (its checker refuses it)" in refused(path)


def external(tmp_path: Path, edit: Callable[[onnx.TensorProto, Path], None]) -> Path:
    """A model with external data in a folder of its own, whose first weight `edit` changes."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = save_external(residual_mlp(1), folder)
    model = onnx.load(path, load_external_data=False)
    edit(model.graph.initializer[0], folder)
    path.write_bytes(model.SerializeToString())
    return path


def put(tensor: onnx.TensorProto, key: str, value: str) -> None:
    kept = [(e.key, e.value) for e in tensor.external_data if e.key != key]
    del tensor.external_data[:]
    for k, v in [*kept, (key, value)]:
        tensor.external_data.add(key=k, value=v)


def test_external_data_is_read_from_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = external(tmp_path, lambda *_: None)
    monkeypatch.chdir(tmp_path)
    model = read(path)
    assert model.folder == path.parent
    assert model.size_bytes > path.stat().st_size
    target = tmp_path / "copy.onnx"
    write(model, target)
    feeds = samples(residual_mlp(1), 2)
    compare(run(residual_mlp(1), feeds), run(target, feeds), atol=0, rtol=0)


def test_the_hash_covers_external_data(tmp_path: Path) -> None:
    path = external(tmp_path, lambda *_: None)
    before = read(path).sha256
    assert read(path).sha256 == before
    weights = path.with_name("model.onnx.weights")
    content = bytearray(weights.read_bytes())
    content[8] ^= 1
    weights.write_bytes(bytes(content))
    assert read(path).sha256 != before


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path, lambda *_: None)
    path.with_name("model.onnx.weights").unlink()
    assert "external data file 'model.onnx.weights' of weight 'w0' is missing" in refused(path)


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path, lambda *_: None)
    weights = path.with_name("model.onnx.weights")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "ends before weight" in refused(path)


def _outside(tmp_path: Path) -> Path:
    """A file of fitting size outside the model's folder."""
    file = tmp_path / "secret"
    file.write_bytes(bytes(1 << 20))
    return file


@pytest.mark.parametrize("location", ["../secret", "sub/../../secret", "./../folder/../secret"])
def test_a_path_that_climbs_out_is_refused(location: str, tmp_path: Path) -> None:
    _outside(tmp_path)
    path = external(tmp_path, lambda tensor, _: put(tensor, "location", location))
    (path.parent / "sub").mkdir()
    line = refused(path)
    assert repr(location) in line
    assert "outside the model's folder" in line


def test_an_absolute_path_is_refused(tmp_path: Path) -> None:
    """Even one that leads back into the folder: it would break when the model moves."""
    secret = _outside(tmp_path)
    path = external(tmp_path, lambda tensor, _: put(tensor, "location", str(secret)))
    assert "outside the model's folder" in refused(path)


def test_a_symbolic_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = _outside(tmp_path)
    path = external(tmp_path, lambda tensor, _: put(tensor, "location", "link"))
    (path.parent / "link").symlink_to(secret)
    assert "outside the model's folder" in refused(path)
    (path.parent / "link").unlink()
    (path.parent / "link").symlink_to(path.parent / "model.onnx.weights")
    assert read(path).graph.nodes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", "-1"),
        ("offset", "9" * 40),
        ("offset", "many"),
        ("length", "-4"),
        ("length", "x"),
        ("length", "9" * 40),
        ("location", ""),
        ("location", "."),
    ],
)
def test_odd_external_entries_are_refused(key: str, value: str, tmp_path: Path) -> None:
    assert "weight 'w0'" in refused(external(tmp_path, lambda t, _: put(t, key, value)))


@pytest.mark.parametrize("value", ["a\0b", "a" * 5000], ids=["NUL", "long"])
def test_impossible_file_names_are_refused(value: str, tmp_path: Path) -> None:
    assert "weight 'w0'" in refused(external(tmp_path, lambda t, _: put(t, "location", value)))


def test_an_unknown_type_of_an_external_weight_is_refused(tmp_path: Path) -> None:
    def edit(tensor: onnx.TensorProto, _folder: Path) -> None:
        tensor.data_type = 99
        entries = [(e.key, e.value) for e in tensor.external_data if e.key != "length"]
        del tensor.external_data[:]
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)

    refused(external(tmp_path, edit))


def test_a_length_that_does_not_fit_the_dimensions_is_refused(tmp_path: Path) -> None:
    assert "weight 'w0'" in refused(external(tmp_path, lambda t, _: put(t, "length", "4")))


def test_the_bytes_of_the_file_are_kept_whoever_wrote_it(tmp_path: Path) -> None:
    """Even where onnx itself would write the fields in another order."""
    model = residual_mlp(1)
    head = onnx.ModelProto()
    head.CopyFrom(model)
    head.ClearField("graph")
    tail = onnx.ModelProto()
    tail.graph.CopyFrom(model.graph)
    odd = tail.SerializeToString() + head.SerializeToString()
    assert odd != model.SerializeToString()
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    source.write_bytes(odd)
    write(read(source), target)
    assert target.read_bytes() == odd


def test_a_weight_inside_a_body_may_not_point_outside(tmp_path: Path) -> None:
    """External data of an If's body is data of the model, too."""
    secret = _outside(tmp_path)
    weight = numpy_helper.from_array(np.zeros((2, 2), np.float32), "hidden")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", f"../{secret.name}"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    made = [helper.make_tensor_value_info("r", 1, (2, 2))]
    body = helper.make_graph(
        [helper.make_node("Identity", ["hidden"], ["r"])], "b", [], made, [weight]
    )
    ends = [
        [helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, ())],
        [helper.make_tensor_value_info("y", 1, (2, 2))],
    ]
    node = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(
        helper.make_graph([node], "g", ends[0], ends[1]), opset_imports=opset, ir_version=8
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert "hidden" in refused(path)


def test_weights_cut_short_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read(external(tmp_path, lambda *_: None))
    weights = next(path for path in model.folder.iterdir() if path.suffix != ".onnx")
    monkeypatch.setattr(onnx_file, "_locate", lambda *_: (weights, 10**9))
    with pytest.raises(BadInput, match="cut short while in use; copy it again"):
        _ = model.sha256
