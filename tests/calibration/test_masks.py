"""Masks: which input marks padding, and what weight that gives each row."""

from __future__ import annotations

import numpy as np
import pytest

from blockfold.calibration.masks import find_mask, row_weights
from blockfold.ir.errors import BadInput
from blockfold.ir.graph import Value

MASKS = [
    Value("input_ids", "int64", ("b", "s")),
    Value("attention_mask", "int64", ("b", "s")),
    Value("pixel_mask", "bool", ("b", "p")),
    Value("mask_bias", "float32", ("b", "s")),
    Value("image_mask", "int64", ("b", "h", "w")),
]


def test_finding_the_mask() -> None:
    assert find_mask(MASKS, None) == "attention_mask"
    assert find_mask(MASKS, "pixel_mask") == "pixel_mask"
    assert find_mask([MASKS[0], MASKS[2]], None) == "pixel_mask"
    assert find_mask([MASKS[0], MASKS[3], MASKS[4], Value("mask")], None) is None
    second = Value("decoder_attention_mask", "int64", ("b", "t"))
    assert find_mask([*MASKS, second], None) is None
    assert find_mask([*MASKS, second], second.name) == second.name
    with pytest.raises(BadInput, match=r"is it 'attention_mask'.*'input_ids', 'attention_mask'"):
        find_mask(MASKS, "atention_mask")
    for name in ("mask_bias", "image_mask"):
        with pytest.raises(BadInput, match=f"'{name}'.*whole-number or bool"):
            find_mask(MASKS, name)


def test_row_weights() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    flat = [1, 1, 0, 1, 0, 0]
    weights = row_weights(mask, (2, 3, 5), 2)
    assert (weights.dtype.name, weights.tolist()) == ("float64", flat)
    assert row_weights(mask.astype(bool), (2, 3, 5), -1).tolist() == flat
    assert row_weights(5 * mask, (2, 5, 3), 1).tolist() == flat
    heads = row_weights(mask, (2, 3, 4, 5), -1).reshape(2, 3, 4)
    assert np.array_equal(heads, np.broadcast_to(mask[:, :, None], (2, 3, 4)))
    for shape, axis in {(2, 4, 5): -1, (3, 2, 5): -1, (6, 5): -1, (2, 5): 1}.items():
        assert row_weights(mask, shape, axis).tolist() == [1] * (np.prod(shape) // 5)
