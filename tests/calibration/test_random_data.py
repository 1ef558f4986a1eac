"""Made-up data fits the model and is known as such."""

from __future__ import annotations

import numpy as np
import pytest

from blockfold.calibration.sources import RANDOM_LENGTH, open_data, random_data
from blockfold.ir.errors import BadInput
from blockfold.ir.graph import Value
from blockfold.tests.feeding import (
    INPUTS,
    arrays,
)

pytestmark = pytest.mark.usefixtures("spools")


def test_random_data() -> None:
    inputs = [
        Value("input_ids", "int64", ("batch", "seq")),
        Value("attention_mask", "int64", ("batch", "seq")),
        Value("token_type_ids", "int32", ("batch", "seq")),
        Value("pixels", "float16", (1, 3, None)),
        Value("flag", "bool", ("batch",)),
    ]
    with random_data(inputs, 150, 1) as data, random_data(inputs, 150, 1) as same:
        assert data.random
        assert data.samples == 150
        assert data.digest == same.digest
        (batch,) = data.batches(np.arange(150), 150)
        assert batch.feeds.keys() == {value.name for value in inputs}
    for value in inputs:
        feed = batch.feeds[value.name]
        assert feed.dtype == value.dtype
        assert feed.shape[2:] == (RANDOM_LENGTH,) * (len(value.shape or ()) - 2)
    assert set(np.unique(batch.feeds["input_ids"])) <= set(range(100))
    assert len(np.unique(batch.feeds["input_ids"])) > 50
    assert set(np.unique(batch.feeds["token_type_ids"])) == {0, 1}
    mask = batch.feeds["attention_mask"]
    assert mask[:, 0].all()
    assert np.all(np.diff(mask, axis=1) <= 0)
    assert not mask.all()
    assert 0.9 < batch.feeds["pixels"].std() < 1.1
    with random_data(inputs, 150, 2) as other:
        assert other.digest != data.digest
    with open_data(arrays(), INPUTS) as real:
        assert not real.random
    for bad in ((0, 0), (3, -1)):
        with pytest.raises(BadInput, match="at least one"):
            random_data(inputs, *bad)
    with pytest.raises(BadInput, match="'y' states no shape"):
        random_data([Value("y", "float32")], 1, 0)
