"""The bundled model and images: small, whole, named by no machine, held out from training."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from blockfold.tools.demo.bundle import DATA, MODEL

MOST_BYTES = 2_000_000
LEAST_ACCURACY = 0.97
BLOCKS = 10

Array = npt.NDArray[np.generic]


@cache
def bundle() -> tuple[Array, Array]:
    with np.load(DATA, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["image", "labels"]
        return arrays["image"], arrays["labels"]


def logits(images: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(["logits"], {"image": images})
    return np.asarray(output)


def traces(model: onnx.ModelProto) -> list[bytes]:
    """What in the file, its weights aside, tells of a machine: paths, scripts, stack traces."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for weight in bare.graph.initializer:
        weight.ClearField("raw_data")
    text = bare.SerializeToString()
    marks = (b"/work", b"/root", b"/home", b"/tmp", b"/Users", b"\\Users", b".py", b"__main__")
    return [mark for mark in (*marks, b"stack_trace") if mark in text]


def test_files_are_small() -> None:
    notice = MODEL.with_name("NOTICE")
    assert sum(file.stat().st_size for file in (MODEL, DATA, notice)) <= MOST_BYTES
    text = notice.read_text(encoding="utf-8")
    assert all(word in text for word in ("Alpaydin", "Kaynak", "CC BY 4.0", "scikit-learn"))
    assert f"{len(bundle()[1]):,} of the 1,797" in text


def test_images() -> None:
    images, labels = bundle()
    assert images.dtype == np.float32 and images.shape == (len(labels), 1, 8, 8)
    assert labels.dtype == np.int64 and set(labels.tolist()) == set(range(10))
    assert set(np.unique(images * 16).tolist()) == set(range(17))
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_model_is_whole() -> None:
    model = onnx.load(MODEL, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert all(w.data_location == onnx.TensorProto.DEFAULT for w in model.graph.initializer)
    (image,), (out,) = model.graph.input, model.graph.output
    assert (image.name, out.name) == ("image", "logits")
    assert image.type.tensor_type.shape.dim[0].dim_param
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["Softmax"] == ops["Gelu"] == BLOCKS
    assert {node.domain for node in model.graph.node} == {""}


def test_model_names_its_blocks_but_no_machine() -> None:
    model = onnx.load(MODEL)
    scopes = [
        note.value
        for node in model.graph.node
        for note in node.metadata_props
        if note.key == "pkg.torch.onnx.name_scopes"
    ]
    assert all(any(f"'blocks.{i}'" in scope for scope in scopes) for i in range(BLOCKS))
    assert traces(model) == []
    model.graph.node[3].metadata_props.add(key="stack_trace", value="/home/someone/train.py")
    assert traces(model) == [b"/home", b".py", b"stack_trace"]


def test_accuracy() -> None:
    images, labels = bundle()
    together = logits(images)
    assert together.shape == (len(labels), 10)
    assert (together.argmax(1) == labels).mean() >= LEAST_ACCURACY
    assert (together.argmax(1) == np.roll(labels, 1)).mean() < 0.2
    for i in (0, len(labels) - 1):
        np.testing.assert_allclose(logits(images[i : i + 1])[0], together[i], rtol=0, atol=1e-4)


def test_bundled_images_are_those_not_trained_on() -> None:
    pytest.importorskip("torch", reason="train.py, which makes the selection, needs torch")
    datasets = pytest.importorskip("sklearn.datasets", reason="the full set is scikit-learn's")
    from blockfold.tools.demo.train import TRAIN, split

    trained, trained_labels, kept, kept_labels = split()
    images, labels = bundle()
    assert len(trained) == len(trained_labels) == TRAIN
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(labels, kept_labels)
    pixels, _ = datasets.load_digits(return_X_y=True)
    both = np.concatenate([trained, images]).reshape(-1, 64) * 16
    order, expected = np.lexsort(both.T), np.lexsort(pixels.T)
    np.testing.assert_array_equal(both[order], pixels[expected])
    assert not {image.tobytes() for image in trained} & {image.tobytes() for image in images}
