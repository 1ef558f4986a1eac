"""Networks trained and exported elsewhere than in torch, through the main job.

    python -m blockfold.tools.support.frameworks

Trains small networks on scikit-learn's digits with whichever of these frameworks are installed,
exports each with the framework's own exporter, optimizes the file and prints a row of Markdown.
Images stay as the framework has them (Keras: channels last).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from ...calibration.runtime import load
from ...ir.errors import BlockfoldError
from .. import api

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

TRAINED_ON = 700
BLOCKS, WIDTH, EPOCHS = 5, 32, 30


class Case(NamedTuple):
    """A network: who trains it, whose exporter writes it, and the function that does both."""

    name: str
    packages: tuple[str, ...]
    made: Callable[[Images, Labels, Path], None]


def keras_cnn(images: Images, labels: Labels, path: Path) -> None:
    """A residual network with batch normalisation, channels last."""
    from keras import layers, utils

    utils.set_random_seed(0)
    image = layers.Input((8, 8, 1), name="image")
    x = layers.Conv2D(WIDTH, 3, padding="same")(image)
    for _ in range(BLOCKS):
        y = layers.BatchNormalization()(x)
        y = layers.Conv2D(WIDTH, 3, padding="same", activation="relu")(y)
        x = layers.Add()([x, layers.Conv2D(WIDTH, 3, padding="same")(y)])
    _keras(image, layers.GlobalAveragePooling2D()(layers.ReLU()(x)), images, labels, path)


def keras_transformer(images: Images, labels: Labels, path: Path) -> None:
    """A pre-norm transformer on rows of pixels."""
    from keras import layers, utils

    utils.set_random_seed(0)
    image = layers.Input((8, 8, 1), name="image")
    x = layers.Dense(WIDTH)(layers.Reshape((8, 8))(image))
    x = layers.Conv1D(WIDTH, 3, padding="same")(x)
    for _ in range(BLOCKS):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, WIDTH // 2)(y, y)])
        y = layers.Dense(2 * WIDTH, activation="silu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(WIDTH)(y)])
    _keras(image, layers.GlobalAveragePooling1D()(x), images, labels, path)


def _keras(image: Any, features: Any, images: Images, labels: Labels, path: Path) -> None:
    import keras

    scores = keras.layers.Dense(10)(features)
    model = keras.Model(image, scores)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    model.fit(images, labels, batch_size=50, epochs=EPOCHS, verbose=0)
    model.export(str(path), format="onnx", verbose=False)


def sklearn_mlp(images: Images, labels: Labels, path: Path) -> None:
    """A perceptron behind a scaler; it has no residual stream."""
    import skl2onnx
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flat = images.reshape(len(images), -1)
    layers = (64,) * BLOCKS
    model = make_pipeline(StandardScaler(), MLPClassifier(layers, random_state=0, max_iter=300))
    model.fit(flat, labels)
    options = {"zipmap": False}
    made = skl2onnx.to_onnx(model, flat[:1], options=options)
    path.write_bytes(made.SerializeToString())


CASES = (
    Case("Keras, residual CNN", ("keras", "tensorflow", "tf2onnx"), keras_cnn),
    Case("Keras, transformer", ("keras", "tensorflow", "tf2onnx"), keras_transformer),
    Case("scikit-learn, perceptron", ("sklearn", "skl2onnx"), sklearn_mlp),
)


def row(case: Case, folder: Path, max_drop: float) -> str:
    """Train, export, optimize: one row, or why there is none."""
    missing = [name for name in case.packages if find_spec(name) is None]
    if missing:
        return f"| {case.name} | not tried: {', '.join(missing)} not installed | | | |"
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    path = folder / "model.onnx"
    case.made(images[:TRAINED_ON], labels[:TRAINED_ON], path)
    exporter = f"{case.packages[-1]} {version(case.packages[-1])}"
    (entry,) = load().InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()
    held = images[TRAINED_ON:]
    fed = held if len(entry.shape) == 4 else held.reshape(len(held), -1)
    try:
        found = api.optimize(
            path,
            {entry.name: fed, "labels": labels[TRAINED_ON:]},
            max_drop=max_drop,
            provider="cpu",
        )
    except BlockfoldError as error:
        return f"| {case.name} | {exporter} | {error} | | |"
    verdict, latency = found.verdict, found.plan.latency
    assert latency is not None
    made = ", ".join(f"{d.name}: {d.surrogate}" for d in found.plan.decisions)
    lost = f"{100 * verdict.drop:.2f} points, at most {100 * verdict.bound.upper:.2f}"
    return f"| {case.name} | {exporter} | {made} | {lost} | {latency.ratio:.2f}x |"


@click.command()
@click.option("--max-drop", default=0.03, show_default=True, help="As of optimize.")
def main(max_drop: float) -> None:
    """Try what is installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    click.echo("| network | exporter | replaced | lost | latency |")
    click.echo("| --- | --- | --- | --- | --- |")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            click.echo(row(case, Path(folder), max_drop))


if __name__ == "__main__":
    main()
