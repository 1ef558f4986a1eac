"""Moments of tensors on a device are NumPy's, and nothing leaves the device before the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blockfold.calibration.sweep import Pair, Statistics
from blockfold.calibration.torch_moments import DeviceStatistics
from blockfold.ir.errors import BadInput
from blockfold.tests.calibration.test_graph_moments import check

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA here")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]

TOKENS = [Pair("a", "b", -1), Pair("a", "a", -1), Pair("b", "c", -1)]
MAPS = [Pair("a", "b", 1), Pair("b", "c", 1)]

Arrays = Mapping[str, np.ndarray]


def batches(shape: tuple[int, ...], dtype: Any = np.float32, offset: float = 0.0) -> list[Arrays]:
    rng = np.random.default_rng(0)
    found: list[Arrays] = []
    for _ in range(3):
        a = rng.standard_normal(shape)
        b = np.tanh(a) + 0.1 * rng.standard_normal(shape)
        values = {"a": a + offset, "b": b, "c": a - b}
        found.append({name: value.astype(dtype) for name, value in values.items()})
    return found


def both(
    pairs: list[Pair],
    given: list[Arrays],
    masks: list[np.ndarray | None] | None = None,
    device: str = "cpu",
) -> tuple[Statistics, Statistics]:
    ours, theirs = DeviceStatistics(pairs), Statistics(pairs)
    for values, mask in zip(given, masks or [None] * len(given), strict=True):
        tensors = {name: torch.from_numpy(value).to(device) for name, value in values.items()}
        ours.add(tensors, None if mask is None else torch.from_numpy(mask).to(device))
        theirs.add(values, None if mask is None else mask.astype(np.float64))
    return ours.statistics(), theirs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(9, 6), (4, 7, 6), (2, 3, 4, 6)])
def test_tokens(shape: tuple[int, ...], device: str) -> None:
    check(*both(TOKENS, batches(shape), device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_feature_maps(device: str) -> None:
    check(*both(MAPS, batches((4, 6, 5, 3)), device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_padding_does_not_count(device: str) -> None:
    rng = np.random.default_rng(1)
    masks: list[np.ndarray | None] = [rng.integers(0, 2, (4, 7)) for _ in range(3)]
    made, wanted = both(TOKENS, batches((4, 7, 6)), masks, device)
    check(made, wanted)
    with pytest.raises(AssertionError):
        check(both(TOKENS, batches((4, 7, 6)), device=device)[0], wanted)


def test_nan_in_padding_is_nothing() -> None:
    given, mask = batches((4, 7, 6)), np.ones((4, 7), np.int64)
    mask[:, 5:] = 0
    for values in given:
        values["b"][:, 5:] = np.nan
    check(*both(TOKENS, given, [mask] * 3))


def test_a_first_batch_that_is_all_padding() -> None:
    masks: list[np.ndarray | None] = [np.zeros((4, 7), np.int64), *[np.ones((4, 7), np.int64)] * 2]
    check(*both(TOKENS, batches((4, 7, 6)), masks))


@pytest.mark.parametrize("device", DEVICES)
def test_huge_means_keep_their_spread(device: str) -> None:
    made, wanted = both(TOKENS, batches((4, 7, 6), offset=3e4), device=device)
    check(made, wanted, 1e-3)


def test_other_dtypes() -> None:
    check(*both(TOKENS, batches((4, 7, 6), np.float64)), 1e-12)
    check(*both(TOKENS, batches((4, 7, 6), np.float16)), 1e-5)
    given = [{n: torch.from_numpy(v).bfloat16() for n, v in b.items()} for b in batches((4, 7, 6))]
    ours, theirs = DeviceStatistics(TOKENS), Statistics(TOKENS)
    for values in given:
        ours.add(values, None)
        theirs.add({name: value.float().numpy() for name, value in values.items()}, None)
    check(ours.statistics(), theirs)


def test_rows_of_zeros_have_the_same_cosine() -> None:
    given = batches((4, 7, 6))
    for values in given:
        values["a"][0], values["b"][:2] = 0.0, 0.0
    check(*both(TOKENS, given))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_told_in_the_end_by_name(bad: float) -> None:
    given = batches((4, 7, 6))
    given[1]["b"][3, 2, 1] = bad
    with pytest.raises(BadInput, match="inner value 'b' holds NaN or Inf"):
        both(TOKENS, given)


def test_before_any_batch_there_is_nothing() -> None:
    assert DeviceStatistics(TOKENS).statistics().products == {}


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what makes a host wait for a device: numbers read, and tensors picked by others."""

    NAMES = ("_local_scalar_dense", "nonzero", "index.Tensor", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.copies = 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func.name().removeprefix("aten::")
        self.count += name.startswith(self.NAMES)
        self.copies += name.startswith("_to_copy") and "device" in (kwargs or {})
        return func(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[Waits]:
    with Waits() as counted:
        yield counted


def test_nothing_waits_for_the_device_and_one_copy_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    cpu = torch.Tensor.cpu

    def counted(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.numel())
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", counted)
    found = DeviceStatistics(TOKENS)
    mask = torch.ones(4, 7, dtype=torch.int64)
    with waits() as told:
        for values in batches((4, 7, 6)):
            found.add({name: torch.from_numpy(value) for name, value in values.items()}, mask)
    assert (told.count, told.copies, copied) == (0, 0, [])
    found.statistics()
    assert len(copied) == 1


def test_the_count_of_waits_can_rise() -> None:
    x = torch.ones(3)
    with waits() as told:
        x.sum().item()
        _ = x[x > 0]
        x.nonzero()
    assert told.count >= 3


def test_tf32_is_off_for_products_and_left_as_it_was() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        check(*both(TOKENS, batches((4, 7, 6))))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
