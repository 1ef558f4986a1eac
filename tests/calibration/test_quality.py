"""Quality: what every metric says of hand-made outputs, with and without masks."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import entropy

from blockfold.calibration.quality import (
    METRICS,
    Judge,
    Outputs,
    Scorer,
    Scores,
    default_metric,
    find_metric,
    is_exact,
)
from blockfold.ir.errors import BadInput

Floats = NDArray[np.float64]

ORIGINAL = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 0.0, 5.0], [4.0, 0.0, 1.0]])
NEW = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 0.0, 2.0], [0.0, 9.0, 1.0]])
LABELS = np.array([0, 2, 2, 0])


def scored(metric: str, *batches: Outputs, own: Judge | None = None) -> Scores:
    scorer = Scorer(metric, own)
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


def bits(*rows: tuple[float, ...]) -> Floats:
    """Logits (rows, length, 2) that give label 0 a probability of 2 ^ -bits at each position."""
    chance = 2.0 ** -np.array(rows)
    return np.log(np.stack([chance, 1 - chance], -1)) + 3.0


BEFORE, AFTER = bits((1, 9, 9), (2, 2, 3)), bits((4, 1, 1), (2, 3, 3))
TOKENS = np.array([[0, -100, -1], [0, 0, 0]])
"""One token of 1 bit, then of 4, and three of 7 bits, then of 8: perplexity is 2^2, then 2^3."""


def test_perplexity_is_of_all_tokens_together() -> None:
    found = scored("perplexity", Outputs(BEFORE, AFTER, TOKENS))
    np.testing.assert_allclose(found.before, np.log(2) * np.array([-1, -7 / 3]))
    np.testing.assert_allclose(found.after, np.log(2) * np.array([-4, -8 / 3]))
    np.testing.assert_array_equal(found.tokens, [1, 3])
    np.testing.assert_allclose(found.damage, [2**3 - 1, 2 ** (1 / 3) - 1])
    assert found.reached == pytest.approx((4, 8))
    assert found.drop == pytest.approx(1)
    assert found.damage.mean() > 3, "the mean over sequences is another thing"
    parts = [Outputs(BEFORE[i : i + 1], AFTER[i : i + 1], TOKENS[i : i + 1]) for i in range(2)]
    assert scored("perplexity", *parts).drop == pytest.approx(1)
    one, other = (scored("perplexity", part) for part in parts)
    assert one.joined(other).drop == pytest.approx(1)


def test_perplexity_of_known_models() -> None:
    """Even logits give the size of the vocabulary, whatever the labels; sure ones give 1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, (5, 4, 3))
    sure = np.where(labels[..., None] == np.arange(7), 1e3, 0.0)
    found = scored("perplexity", Outputs(np.full((5, 4, 3, 7), 2.5), sure, labels))
    assert found.reached == pytest.approx((7, 1))
    assert found.drop == pytest.approx(1 / 7 - 1)
    single = scored("perplexity", Outputs(np.zeros((5, 7)), np.zeros((5, 7)), labels[:, 0, 0]))
    assert single.reached == pytest.approx((7, 7))


def test_a_label_is_of_the_position_it_stands_at() -> None:
    """Nothing is shifted: the same labels, one position on, are those of other tokens."""
    labels = np.arange(6)[None]
    logits = np.where(labels[..., None] == np.arange(6), 50.0, 0.0)
    assert scored("perplexity", Outputs(logits, logits, labels)).reached[0] == pytest.approx(1)
    late = np.roll(labels, -1)
    assert scored("perplexity", Outputs(logits, logits, late)).reached[0] > 1e20


def test_hidden_tokens_and_labels_below_zero_are_one() -> None:
    mask, labels = (TOKENS >= 0).astype(np.float64), np.zeros_like(TOKENS)
    hidden = scored("perplexity", Outputs(BEFORE, AFTER, labels, mask))
    assert hidden.drop == pytest.approx(1)
    assert scored("perplexity", Outputs(BEFORE, AFTER, labels)).drop != pytest.approx(1, abs=0.1)
    beyond = np.where(mask > 0, 0, 99)  # nobody looks there
    assert scored("perplexity", Outputs(BEFORE, AFTER, beyond, mask)).drop == pytest.approx(1)


def test_a_sequence_without_tokens_weighs_nothing() -> None:
    before, after = (np.concatenate([logits, logits[:1]]) for logits in (BEFORE, AFTER))
    labels = np.concatenate([TOKENS, np.full((1, 3), -100)])
    found = scored("perplexity", Outputs(before, after, labels))
    assert found.drop == pytest.approx(1)
    assert found.damage[2] == 0
    groups = found.by_group(np.array([0, 1, 2]))
    assert groups.drop == pytest.approx(1)
    np.testing.assert_array_equal(groups.tokens, [1, 3, 0])


def test_perplexity_beyond_all_bounds_stays_a_number() -> None:
    labels = np.zeros((2, 1), np.int64)
    far = np.array([[[0.0, 1e30]], [[0.0, 0.0]]])
    found = scored("perplexity", Outputs(np.zeros((2, 1, 2)), far, labels))
    assert np.isfinite([*found.damage, *found.linear, *found.reached, found.drop]).all()
    assert found.drop > 1e40


def random_scores(samples: int, seed: int = 0) -> Scores:
    """Perplexities of sequences of 1 to 60 tokens, of which the short ones lose most."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 61, samples).astype(np.float64)
    before = -rng.gamma(4.0, 0.5, samples)
    return Scores(before, before - 1 / tokens - 0.1 * rng.random(samples), tokens=tokens)


def test_linear_damages_have_the_drop_for_mean_and_its_spread() -> None:
    found = random_scores(400)
    assert found.linear.mean() == pytest.approx(found.drop)
    rng = np.random.default_rng(1)
    draws = rng.integers(400, size=(3000, 400))
    spread = np.std([found.statistic(found.units[draw]) for draw in draws])
    assert found.linear.std() / 20 == pytest.approx(spread, rel=0.06)
    assert found.damage.std() / 20 > 2 * spread, "that of sequences by themselves is another"
    plain = Scores(found.before, found.after)
    np.testing.assert_array_equal(plain.linear, plain.damage)
    np.testing.assert_array_equal(plain.units, plain.damage)


def test_groups_of_sequences_count_their_tokens() -> None:
    found = random_scores(60)
    groups = np.random.default_rng(2).integers(0, 9, 60)
    merged = found.by_group(groups)
    assert len(merged.damage) == 9
    assert merged.drop == pytest.approx(found.drop)
    assert merged.reached == pytest.approx(found.reached)
    assert found.tokens is not None
    mine = groups == 4
    wanted = np.average(found.before[mine], weights=found.tokens[mine])
    assert merged.before[4] == pytest.approx(wanted)


def margin(outputs: Any, labels: Any) -> Any:
    """Logit of the label over the mean logit."""
    return outputs[np.arange(len(labels)), labels] - outputs.mean(-1)


def test_a_function_judges_each_model_by_itself() -> None:
    outputs = Outputs(ORIGINAL, NEW, LABELS)
    found = scored("m:f", outputs, own=margin)
    np.testing.assert_allclose(found.before, margin(ORIGINAL, LABELS))
    np.testing.assert_allclose(found.after, margin(NEW, LABELS))
    assert found.drop == pytest.approx((margin(ORIGINAL, LABELS) - margin(NEW, LABELS)).mean())
    halves = [Outputs(ORIGINAL[i : i + 2], NEW[i : i + 2], LABELS[i : i + 2]) for i in (0, 2)]
    assert scored("m:f", *halves, own=margin).drop == pytest.approx(found.drop)
    assert scored("m:f", Outputs(ORIGINAL, ORIGINAL, LABELS), own=margin).drop == 0
    blind = scored("m:f", Outputs(ORIGINAL, NEW), own=lambda x, y: x.max(-1) + (y is not None))
    np.testing.assert_allclose(blind.damage, ORIGINAL.max(-1) - NEW.max(-1))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda x, _: x, r"gave scores of shape \(4, 3\) for 4 samples; give one for each"),
        (lambda *_: 1.0, r"gave scores of shape \(\) for 4 samples"),
        (lambda x, _: x[:, 0] * np.nan, "gave NaN or Inf; give finite scores"),
        (lambda _: 1.0, "calling it failed .TypeError: .*2 were given"),
        (lambda *_: ["good"] * 4, "calling it failed .ValueError: could not convert"),
        (Outputs, "calling it failed .TypeError"),
    ],
)
def test_a_function_that_gives_no_scores_is_refused(own: Judge, said: str) -> None:
    with pytest.raises(BadInput, match=f"^--metric m:f: {said}") as caught:
        scored("m:f", Outputs(ORIGINAL, NEW, LABELS), own=own)
    assert "\n" not in str(caught.value)


class Judging:
    def __call__(self, outputs: Any, labels: Any) -> Any:
        return margin(outputs, labels)


def test_functions_are_named_by_where_they_stand() -> None:
    here = __name__
    assert find_metric(margin) == (f"{here}:margin", margin)
    assert find_metric(Judging().__call__)[0] == f"{here}:Judging.__call__"
    assert find_metric(Judging())[0] == f"{here}:Judging"
    assert find_metric(lambda x, _: x)[0].startswith(f"{here}:test_functions")
    assert find_metric(partial(margin, labels=LABELS))[0] == "functools:partial"
    assert find_metric("cosine") == ("cosine", None)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on the import path."""
    name = "judges_of_a_test"
    (tmp_path / f"{name}.py").write_text(
        "import numpy\nclass inner:\n    best = staticmethod(lambda x, _: x.max(-1))\nfive = 5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_text_names_a_function(module: str) -> None:
    name, own = find_metric(f"{module}:inner.best")
    assert name == f"{module}:inner.best", "as it was typed"
    found = scored(name, Outputs(ORIGINAL, NEW), own=own)
    np.testing.assert_allclose(found.damage, ORIGINAL.max(-1) - NEW.max(-1))
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("beauty", "--metric beauty: unknown; it is one of accuracy.*, or module:attribute"),
        ("a:b:c", "--metric a:b:c: unknown"),
        ("{}:inner.bets", "has no 'inner.bets'"),
        ("{}:fife", "has no 'fife' .is it 'five'"),
        ("{}:five", "--metric {}:five: is a int; give a function of .outputs, labels"),
        ("no_such_{}:f", "importing module 'no_such_{}' failed"),
        (5, "is a int; give a function"),
    ],
)
def test_what_names_no_function_is_refused(given: Any, said: str, module: str) -> None:
    given = given.format(module) if isinstance(given, str) else given
    with pytest.raises(BadInput, match=said.format(module)):
        find_metric(given)


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
        labels if metric in ("accuracy", "perplexity") else None,
        mask,
    )


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        "cosine",
        "nmse",
        "kl",
        "perplexity",
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
        ("perplexity", Outputs(BEFORE, AFTER), "needs labels"),
        ("perplexity", Outputs(BEFORE, AFTER, TOKENS[:, 0]), "one more axis, the vocabulary"),
        ("perplexity", Outputs(BEFORE, AFTER, TOKENS + 0.0), "labels are float64; give token ids"),
        (
            "perplexity",
            Outputs(BEFORE, AFTER, TOKENS + 2),
            "label 2 is outside the vocabulary",
        ),
        ("perplexity", Outputs(BEFORE, AFTER, 0 * TOKENS - 100), "no label counts"),
        ("perplexity", Outputs(BEFORE, AFTER, TOKENS, np.zeros((2, 3))), "no label counts"),
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
    assert not any(is_exact(metric, LABELS) for metric in ("cosine", "perplexity", "m:accuracy"))
