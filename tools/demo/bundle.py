"""The bundled demo: where its files are, and what is said about them."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).with_name("digits_vit.onnx")
DATA = Path(__file__).with_name("digits.npz")

STORY = """
A vision transformer with 10 blocks, trained on part of scikit-learn's
handwritten digits; the images here are the others, which it has never seen.
A quarter of them fitted the maps below, a quarter chose among them, and half
was held back to certify the one that was chosen.
"""

NEXT = """
On your own model:
  blockfold inspect  model.onnx --data samples.npz
  blockfold optimize model.onnx --data samples.npz --max-drop 1% -o small.onnx
samples.npz holds arrays named after the model's inputs and, to be judged by
accuracy, `labels`. Look at this one again:
  blockfold bench  {model} {out}
"""
