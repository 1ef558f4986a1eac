"""Data that cannot be used is one clear line; nothing is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blockfold.passes.bounds import smallest_n
from blockfold.tests.networks import TOKENS
from blockfold.tests.tools.harness import (
    SAMPLES,
    WIDTH,
)
from blockfold.tests.tools.place import (
    BAD_INPUT,
    Cases,
    Place,
    Words,
)

case = Cases()


@case(BAD_INPUT, "nowhere.npz", "no such file")
def data_is_missing(place: Place) -> Words:
    return place.optimize(data=place.folder / "nowhere.npz")


@case(BAD_INPUT, "text.npz", "cannot be read", "damaged or truncated")
def data_is_text(place: Place) -> Words:
    return place.optimize(data=place.file("text.npz", b"hello"))


@case(BAD_INPUT, "half.npz", "cannot be read", "damaged or truncated")
def data_is_truncated(place: Place) -> Words:
    content = place.data.read_bytes()
    return place.optimize(data=place.file("half.npz", content[: len(content) // 2]))


@case(BAD_INPUT, "given.npz", "'y'", "the model takes 'x'", "rename")
def data_names_another_input(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(y=arrays["x"], labels=arrays["labels"]))


@case(BAD_INPUT, "given.npz", "missing 'x'", "add")
def data_lacks_an_input(place: Place) -> Words:
    return place.optimize(data=place.npz(labels=place.arrays()["labels"]))


@case(BAD_INPUT, "given.npz", "'x'", "rank 2", "rank 3", "reshape")
def data_has_the_wrong_rank(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(**arrays | {"x": arrays["x"].mean(1)}))


@case(BAD_INPUT, "given.npz", "'x'", f"{WIDTH + 1}", f"{TOKENS}, {WIDTH}", "reshape")
def data_has_the_wrong_width(place: Place) -> Words:
    wide = np.zeros((SAMPLES, TOKENS, WIDTH + 1), np.float32)
    return place.optimize(data=place.npz(**place.arrays() | {"x": wide}))


@case(BAD_INPUT, "given.npz", "'x'", "int64", "float32", "convert")
def data_has_the_wrong_dtype(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(**arrays | {"x": arrays["x"].astype(np.int64)}))


@case(BAD_INPUT, "given.npz", "'x", "objects", "plain numbers")
def data_holds_objects(place: Place) -> Words:
    things = np.array([{"text": 1}] * SAMPLES, dtype=object)
    return place.optimize(data=place.npz(**place.arrays() | {"x": things}))


@case(BAD_INPUT, "given.npz", "'x'", "NaN", "sample 17", "repair")
def data_holds_nan(place: Place) -> Words:
    arrays = place.arrays()
    arrays["x"][17, 1, 2] = np.nan
    return place.optimize(data=place.npz(**arrays))


@case(BAD_INPUT, "given.npz", "'x'", "Inf", "sample 3", "repair")
def data_holds_inf(place: Place) -> Words:
    arrays = place.arrays()
    arrays["x"][3, 0, 0] = -np.inf
    return place.optimize(data=place.npz(**arrays))


@case(BAD_INPUT, "NaN or Inf", "check the model and the data")
def data_overflows_inside(place: Place) -> Words:
    arrays = place.arrays()
    arrays["x"][5] = 3e38
    return place.optimize(data=place.npz(**arrays))


@case(BAD_INPUT, "given.npz", "no samples")
def data_holds_no_samples(place: Place) -> Words:
    return place.optimize(data=place.npz(**place.arrays(0)))


@case(BAD_INPUT, "3 samples", "25/25/50", "at least 4", "give more")
def data_is_too_short_to_split(place: Place) -> Words:
    return place.optimize(data=place.npz(**place.arrays(3)))


@case(BAD_INPUT, "0.05", f"at least {smallest_n(0.05, paired=True)}", "holds 20", "or allow more")
def data_is_too_short_to_certify(place: Place) -> Words:
    return place.optimize(data=place.npz(**place.arrays(40)))


@case(BAD_INPUT, "given.npz", "'labels' has 399", "400")
def labels_are_too_few(place: Place) -> Words:
    arrays = place.arrays()
    return place.optimize(data=place.npz(x=arrays["x"], labels=arrays["labels"][1:]))


@case(BAD_INPUT, "'labels'", "<U4", "not numbers")
def labels_are_text(place: Place) -> Words:
    arrays = place.arrays()
    named = np.array(["text"] * SAMPLES)
    return place.optimize(data=place.npz(x=arrays["x"], labels=named))


@case(BAD_INPUT, "--metric accuracy", "needs labels", "`labels`")
def accuracy_without_labels(place: Place) -> Words:
    return place.optimize("--metric", "accuracy", data=place.npz(x=place.arrays()["x"]))


@case(BAD_INPUT, "--metric perplexity", "needs labels", "`labels`")
def perplexity_without_labels(place: Place) -> Words:
    return place.optimize("--metric", "perplexity", data=place.npz(x=place.arrays()["x"]))


@case(BAD_INPUT, "--metric perplexity", "labels are float64", "token ids")
def perplexity_of_fractions(place: Place) -> Words:
    data = place.npz(**place.arrays() | {"labels": np.full(SAMPLES, 0.5)})
    return place.optimize("--metric", "perplexity", data=data)


@case(BAD_INPUT, "--metric perplexity", "label 99", "vocabulary", "token ids")
def perplexity_of_unknown_tokens(place: Place) -> Words:
    data = place.npz(**place.arrays() | {"labels": np.full(SAMPLES, 99)})
    return place.optimize("--metric", "perplexity", data=data)


@case(BAD_INPUT, "--metric perplexity", "no label counts", "token ids")
def perplexity_of_no_tokens(place: Place) -> Words:
    data = place.npz(**place.arrays() | {"labels": np.full(SAMPLES, -100)})
    return place.optimize("--metric", "perplexity", data=data)


@case(BAD_INPUT, "--metric accuracy", "labels of shape", "classes")
def labels_of_another_shape(place: Place) -> Words:
    arrays = place.arrays()
    twice = np.stack([arrays["labels"]] * 2, 1)
    return place.optimize("--metric", "accuracy", data=place.npz(x=arrays["x"], labels=twice))


@case(BAD_INPUT, "no_such_module:batches", "importing")
def data_module_is_missing(place: Place) -> Words:
    return place.optimize(data=Path("no_such_module:batches"))


@case(BAD_INPUT, "--data", "--random-data")
def no_data_at_all(place: Place) -> Words:
    return ["optimize", place.model, "-o", place.target]


@case(BAD_INPUT, "--data", "--random-data")
def data_and_random_data(place: Place) -> Words:
    return place.optimize("--random-data", "99")


@case(BAD_INPUT, "--data", "--random-data")
def verify_without_data(place: Place) -> Words:
    return ["verify", place.model, place.small]


test_it_is_one_clear_line = case.test()
