"""Quality: what every metric says of hand-made outputs, with and without masks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy

from blockfold.calibration.quality import (
    METRICS,
    Outputs,
    Scorer,
    Scores,
    default_metric,
    is_exact,
)
from blockfold.ir.errors import BadInput

Floats = NDArray[np.float64]

ORIGINAL = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 5.0], [4.0, 0.0, 1.0]])
NEW = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [0.0, 9.0, 1.0]])
LABELS = np.array([0, 2, 2, 0])


def scored(metric: str, *batches: Outputs) -> Scores:
    scorer = Scorer(metric)
    for batch in batches:
        scorer.add(batch)
    return scorer.scores()


def test_accuracy_counts_right_before_and_right_after() -> None:
    found = scored("accuracy", Outputs(ORIGINAL, NEW, LABELS))
    np.testing.assert_array_equal(found.before, [1, 0, 1, 1])
    np.testing.assert_array_equal(found.after, [1, 1, 1, 0])
    np.testing.assert_array_equal(found.damage, [0, -1, 0, 1])
    assert found.drop == 0.0


def test_agreement_counts_equal_choices() -> None:
    found = scored("agreement", Outputs(ORIGINAL, NEW))
    np.testing.assert_array_equal(found.before, [1, 1, 1, 1])
    np.testing.assert_array_equal(found.damage, [0, 1, 0, 1])
    assert found.drop == 0.5


def test_cosine_is_the_mean_over_rows() -> None:
    original = np.array([[[1.0, 0.0], [1.0, 0.0]]])
    new = np.array([[[2.0, 0.0], [0.0, 1.0]]])
    found = scored("cosine", Outputs(original, new))
    np.testing.assert_allclose(found.damage, [0.5])
    same = scored("cosine", Outputs(original, original))
    np.testing.assert_allclose(same.damage, [0.0], atol=1e-12)


def test_kl_is_the_divergence_of_the_probabilities() -> None:
    found = scored("kl", Outputs(ORIGINAL, NEW))
    wanted = entropy(softmax(ORIGINAL, axis=1), softmax(NEW, axis=1), axis=1)
    np.testing.assert_allclose(found.damage, wanted)
    assert wanted.min() > 0.01
    known = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    np.testing.assert_allclose(scored("kl", Outputs(*known)).damage, [0.5 * np.log(4 / 3)])
    far = scored("kl", Outputs(1e4 * ORIGINAL, 1e4 * ORIGINAL + 7.0))
    np.testing.assert_allclose(far.damage, 0.0, atol=1e-12)


def test_nmse_is_relative_to_the_variance_of_the_original() -> None:
    found = scored("nmse", Outputs(ORIGINAL, NEW))
    errors = np.square(ORIGINAL - NEW).mean(1)
    np.testing.assert_allclose(found.damage, errors / ORIGINAL.var())
    assert found.drop == pytest.approx(np.square(ORIGINAL - NEW).mean() / ORIGINAL.var())
    constant = scored("nmse", Outputs(ORIGINAL, np.full_like(ORIGINAL, ORIGINAL.mean())))
    assert constant.drop == pytest.approx(1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_batches_do_not_matter_and_nothing_is_lost_against_itself(metric: str) -> None:
    whole = scored(metric, Outputs(ORIGINAL, NEW, LABELS))
    parts = [
        Outputs(ORIGINAL[rows], NEW[rows], LABELS[rows]) for rows in (slice(0, 1), slice(1, 4))
    ]
    np.testing.assert_allclose(scored(metric, *parts).damage, whole.damage)
    assert scored(metric, Outputs(ORIGINAL, ORIGINAL, LABELS)).drop == pytest.approx(0, abs=1e-12)


def token_outputs(metric: str, length: int) -> Outputs:
    """Outputs (2, length, 3) of which the first 2 and 3 tokens count; the rest are far off."""
    rng = np.random.default_rng(0)
    original, noise = rng.standard_normal((2, 3, 3)), rng.standard_normal((2, 3, 3))
    filler = np.full((2, length - 3, 3), 50.0)
    mask = np.ones((2, length))
    mask[0, 2:], mask[1, 3:] = 0, 0
    labels = np.concatenate([original.argmax(-1), np.full((2, length - 3), 1)], 1)
    return Outputs(
        np.concatenate([original, filler], 1),
        np.concatenate([original + noise, -filler], 1),
        labels if metric == "accuracy" else None,
        mask,
    )


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        "cosine",
        "nmse",
        "kl",
    ],
)
def test_padding_does_not_count(metric: str) -> None:
    short, long = (scored(metric, token_outputs(metric, length)) for length in (4, 9))
    assert short.drop != 0
    np.testing.assert_allclose(long.damage, short.damage)
    np.testing.assert_allclose(long.before, short.before)


def test_masked_means_are_over_the_tokens_that_count() -> None:
    batch = token_outputs("cosine", 5)
    plain = [
        scored("cosine", Outputs(batch.original[i : i + 1, :n], batch.new[i : i + 1, :n])).damage[0]
        for i, n in ((0, 2), (1, 3))
    ]
    np.testing.assert_allclose(scored("cosine", batch).damage, plain)


def test_groups_are_means_of_their_samples() -> None:
    found = scored("accuracy", Outputs(ORIGINAL, NEW, LABELS)).by_group(np.array([5, 5, 5, 9]))
    np.testing.assert_allclose(found.before, [2 / 3, 1])
    np.testing.assert_allclose(found.after, [1, 0])
    np.testing.assert_allclose(found.damage, [-1 / 3, 1])


@pytest.mark.parametrize(
    ("metric", "outputs", "said"),
    [
        ("accuracy", Outputs(ORIGINAL, NEW), "needs labels"),
        ("accuracy", Outputs(ORIGINAL, NEW, LABELS[:, None]), "do not fit labels of shape"),
        ("agreement", Outputs(ORIGINAL[None], NEW[None]), "take --metric cosine"),
        ("cosine", Outputs(ORIGINAL[0], NEW[0]), "needs outputs of rows"),
        ("kl", Outputs(ORIGINAL[0], NEW[0]), "needs outputs of logits"),
        ("nmse", Outputs(ORIGINAL, np.full_like(NEW, np.inf)), "NaN or Inf"),
        ("agreement", Outputs(ORIGINAL, np.full_like(NEW, np.nan)), "NaN or Inf"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(metric: str, outputs: Outputs, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        scored(metric, outputs)


def test_an_original_that_gives_nan_is_refused() -> None:
    with pytest.raises(BadInput, match="NaN or Inf"):
        scored("accuracy", Outputs(np.full_like(ORIGINAL, np.nan), NEW, LABELS))


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(BadInput, match="--metric beauty: unknown; it is one of accuracy"):
        Scorer("beauty")


@pytest.mark.parametrize(
    ("rank", "labels", "metric"),
    [(2, True, "accuracy"), (3, True, "accuracy"), (2, False, "agreement"), (3, False, "cosine")],
)
def test_default_metrics(rank: int, labels: bool, metric: str) -> None:
    assert default_metric(rank, labels) == metric


def test_what_has_an_exact_bound() -> None:
    assert is_exact("agreement", None)
    assert is_exact("accuracy", LABELS)
    assert not is_exact("accuracy", LABELS[:, None])
    assert not is_exact("cosine", LABELS)
