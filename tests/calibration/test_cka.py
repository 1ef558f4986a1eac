"""Linear CKA and MSRS: the published formulas, what they must not see, and published figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from blockfold.calibration.metrics.cka import (
    MeanCKA,
    cka_matrix,
    linear_cka,
    pooled,
    redtest_keep,
)
from blockfold.calibration.metrics.msrs import msrs
from blockfold.ir.errors import BadInput

Array = NDArray[np.float64]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 6)) + 3.0
Y = X @ RNG.standard_normal((6, 9)) + 0.7 * RNG.standard_normal((20, 9))
BOTH = pytest.mark.parametrize("unbiased", [False, True])


def hsic_biased(K: Array, L: Array) -> float:
    n = len(K)
    H = np.eye(n) - 1 / n
    return float(np.trace(H @ K @ H @ L)) / (n - 1) ** 2


def hsic_unbiased(K: Array, L: Array) -> float:
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    one = np.ones(n)
    product = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return float(np.trace(K @ L) + product - 2 / (n - 2) * one @ K @ L @ one) / (n * (n - 3))


def literal(x: Array, y: Array, hsic: Callable[[Array, Array], float]) -> float:
    K, L = x @ x.T, y @ y.T
    return hsic(K, L) / float(np.sqrt(hsic(K, K) * hsic(L, L)))


def cka(x: Array, y: Array, unbiased: bool) -> float:
    return float(linear_cka(x, y, unbiased=unbiased))


@pytest.mark.parametrize(("unbiased", "hsic"), [(False, hsic_biased), (True, hsic_unbiased)])
@pytest.mark.parametrize("n", [4, 5, 20])
def test_the_published_formula(
    unbiased: bool, hsic: Callable[[Array, Array], float], n: int
) -> None:
    assert cka(X[:n], Y[:n], unbiased) == pytest.approx(literal(X[:n], Y[:n], hsic), rel=1e-9)


@BOTH
def test_features_are_wholly_like_themselves(unbiased: bool) -> None:
    assert cka(X, X, unbiased) == pytest.approx(1.0, abs=1e-12)
    assert cka(X, Y, unbiased) == pytest.approx(cka(Y, X, unbiased), abs=1e-14)


@BOTH
def test_rotations_shifts_and_one_scale_change_nothing(unbiased: bool) -> None:
    Q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))
    expected = cka(X, Y, unbiased)
    for other in (X @ Q, -X, 1e-9 * X, 1e9 * X, X + 100 * np.arange(6)):
        assert cka(other, Y, unbiased) == pytest.approx(expected, rel=1e-9)
    order = np.random.default_rng(2).permutation(20)
    assert cka(X[order], Y[order], unbiased) == pytest.approx(expected, rel=1e-12)


@BOTH
def test_it_does_see_other_maps_and_other_pairs(unbiased: bool) -> None:
    expected = cka(X, Y, unbiased)
    stretched = X * np.array([10.0, 1, 1, 1, 1, 1])
    assert abs(cka(stretched, Y, unbiased) - expected) > 0.05
    assert cka(X, Y[::-1], unbiased) < expected - 0.2


def test_independent_features_are_near_0_without_bias_and_near_1_with_it() -> None:
    rng = np.random.default_rng(3)
    pairs = [(rng.standard_normal((20, 400)), rng.standard_normal((20, 400))) for _ in range(20)]
    assert abs(np.mean([cka(x, y, True) for x, y in pairs])) < 0.02
    assert np.mean([cka(x, y, False) for x, y in pairs]) > 0.9


@BOTH
@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_constant_features_have_0(unbiased: bool, value: float) -> None:
    flat: Array = value * np.tile(np.arange(1.0, 6.0), (20, 1))
    assert cka(flat, Y, unbiased) == 0.0
    assert cka(flat, flat, unbiased) == 0.0
    tensor = torch.tensor(flat, requires_grad=True)
    linear_cka(tensor, torch.tensor(Y), unbiased=unbiased).backward()
    assert tensor.grad is not None and bool((tensor.grad == 0).all())


def test_one_odd_sample_tells_the_unbiased_form_nothing() -> None:
    odd = np.zeros((8, 3))
    odd[5] = [0.3, 0.1, 0.7]
    assert cka(odd, Y[:8], True) == 0.0


@BOTH
@pytest.mark.parametrize(("dtype", "size"), [(np.float16, 3e4), (np.float32, 1e18)])
def test_huge_features_do_not_overflow(
    unbiased: bool, dtype: type[np.floating], size: float
) -> None:
    huge = (X / np.abs(X).max() * size).astype(dtype)
    found = float(linear_cka(huge, Y.astype(np.float32), unbiased=unbiased))
    assert found == pytest.approx(cka(X, Y, unbiased), abs=2e-3)


def test_too_few_samples() -> None:
    with pytest.raises(BadInput, match=r"unbiased CKA of 3 samples .* at least 4"):
        linear_cka(X[:3], Y[:3], unbiased=True)
    assert cka(X[:3], X[:3], False) == pytest.approx(1.0)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(BadInput, match="features of 19 and 20 samples"):
        linear_cka(X, Y[:19])
    with pytest.raises(BadInput, match=r"shape \(20,\)"):
        linear_cka(X[:, 0], Y)
    with pytest.raises(BadInput, match="no features"):
        cka_matrix([])


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tensors_agree_with_arrays(unbiased: bool, dtype: type[np.floating]) -> None:
    layers = [X.astype(dtype), Y.astype(dtype), np.tanh(Y).astype(dtype)]
    ours = cka_matrix(layers, unbiased=unbiased)
    theirs = cka_matrix([torch.from_numpy(layer) for layer in layers], unbiased=unbiased)
    assert isinstance(theirs, torch.Tensor)
    np.testing.assert_allclose(theirs.numpy(), ours, rtol=0, atol=1e-6)


@BOTH
def test_feature_maps_are_flattened(unbiased: bool) -> None:
    maps = np.random.default_rng(4).standard_normal((20, 2, 3, 4))
    assert cka(maps, Y, unbiased) == cka(maps.reshape(20, 24), Y, unbiased)


def test_feature_maps_may_be_pooled_first() -> None:
    maps = np.random.default_rng(4).standard_normal((20, 2, 3, 4))
    np.testing.assert_allclose(pooled(maps), maps.mean((2, 3)))
    np.testing.assert_allclose(pooled(torch.tensor(maps)), maps.mean((2, 3)))
    assert pooled(Y) is Y
    turned = maps.copy()
    turned[::2] = turned[::2, :, :, ::-1]
    assert cka(pooled(turned), pooled(maps), True) == pytest.approx(1.0)
    assert cka(turned, maps, True) < 0.9


@BOTH
def test_gradients(unbiased: bool) -> None:
    x = torch.tensor(X[:6, :3], requires_grad=True)
    y = torch.tensor(Y[:6, :4], requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: linear_cka(a, b, unbiased=unbiased), (x, y))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@BOTH
def test_cuda_agrees(unbiased: bool) -> None:
    x, y = torch.tensor(X, device="cuda", requires_grad=True), torch.tensor(Y, device="cuda")
    found = linear_cka(x, y, unbiased=unbiased)
    found.backward()
    assert found.is_cuda and float(found.detach()) == pytest.approx(cka(X, Y, unbiased), abs=1e-6)


def test_the_mean_over_batches() -> None:
    mean = MeanCKA()
    for start in (0, 5, 10, 15):
        mean.add([X[start : start + 5], Y[start : start + 5]])
    expected = np.mean([cka(X[s : s + 5], Y[s : s + 5], True) for s in (0, 5, 10, 15)])
    assert mean.batches == 4
    assert mean.mean[0, 1] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(BadInput, match="a batch of 3 layers after batches of 2"):
        mean.add([X, X, X])
    with pytest.raises(BadInput, match="of no batches"):
        _ = MeanCKA().mean


def test_a_mean_of_tensors_holds_no_graph() -> None:
    mean = MeanCKA(unbiased=False)
    mean.add([torch.tensor(X, requires_grad=True), torch.tensor(Y)])
    assert not mean.mean.requires_grad


RESNET56 = """
.804 .962 .982 .982 .965 .995 .962 .955 .996  .971 .990 .988 .995 .994 .992 .992 .989 .991
.970 .982 .984 .982 .967 .933 .903 .879 .878
"""


def test_the_published_choice_for_resnet56() -> None:
    values = [float(value) for value in RESNET56.split()]
    kept = redtest_keep(values, (9, 9, 9), 13)
    assert kept == ((0, 1, 2, 4, 6, 7), (0,), (0, 4, 5, 6, 7, 8))
    assert redtest_keep(values, (9, 9, 9), 27) == (tuple(range(9)),) * 3
    assert redtest_keep(values, (9, 9, 9), 0) == ((), (), ())


def test_choices_that_cannot_be_made() -> None:
    with pytest.raises(BadInput, match="do not add up to 3"):
        redtest_keep([0.1, 0.2, 0.3], (2, 2), 1)
    with pytest.raises(BadInput, match="cannot keep 4 of 3"):
        redtest_keep([0.1, 0.2, 0.3], (3,), 4)
    with pytest.raises(BadInput, match="NaN"):
        redtest_keep([0.1, float("nan"), 0.3], (3,), 1)


def test_msrs_counts_similar_pairs() -> None:
    S = np.full((6, 6), 0.95)
    assert float(msrs(S)) == pytest.approx(15.0, abs=1e-9)
    assert float(msrs(S, per_pair=True)) == pytest.approx(1.0, abs=1e-10)
    assert float(msrs(np.full((6, 6), 0.5))) == pytest.approx(0.0, abs=1e-9)
    S[0, 1:] = 0.1
    assert float(msrs(S)) == pytest.approx(10.0, abs=1e-9)
    assert float(msrs(np.full((2, 2), 0.8))) == pytest.approx(0.5)
    assert float(msrs(S, tau=0.05)) == pytest.approx(15.0, abs=1e-3)


def test_msrs_is_the_published_sum_where_that_is_finite() -> None:
    S = np.random.default_rng(5).uniform(0.7, 0.9, (5, 5))
    upper = S[np.triu_indices(5, 1)]
    expected = (1 / (1 + np.exp(-2 * 100 * (upper - 0.8)))).sum()
    assert float(msrs(S)) == pytest.approx(expected, rel=1e-12)
    assert float(msrs(torch.tensor(S))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("value", [-1.0, -0.087, -0.5, 0.0, 0.8, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_msrs_and_its_gradient_are_finite(value: float, dtype: torch.dtype) -> None:
    S = torch.full((3, 3), value, dtype=dtype, requires_grad=True)
    count = msrs(S)
    count.backward()
    assert S.grad is not None and bool(torch.isfinite(S.grad).all())
    assert 0.0 <= float(count.detach()) <= 3.0


def test_msrs_of_what_is_no_matrix_of_similarities() -> None:
    with pytest.raises(BadInput, match=r"shape \(2, 3\)"):
        msrs(np.zeros((2, 3)))
    with pytest.raises(BadInput, match="at least 2 layers"):
        msrs(np.ones((1, 1)))
