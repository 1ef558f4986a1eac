"""Errors at the exits of replaced spans, against what they are by hand."""

from __future__ import annotations

import numpy as np
import pytest

from blockfold.passes.exits import exit_errors
from blockfold.passes.pipeline import build
from blockfold.passes.recipe import Healing, Recipe
from blockfold.passes.surrogates import Form, Wish
from blockfold.tests.networks import labelled, residual_mlp, run
from blockfold.tests.walking import walking


@pytest.mark.parametrize("form", ["identity", "affine"])
def test_both_errors_are_of_everything_made_together(form: Form) -> None:
    model = residual_mlp(4)
    data = labelled(model, 240)
    with walking(model, data) as (task, walk, spans):
        wishes = (Wish(spans["blocks.1"], form), Wish(spans["blocks.3"], form))
        (fitted,) = walk([Recipe(wishes, Healing(refit=None))])
        made = build(task.plain, fitted.replacements)
        found = exit_errors(task, made, fitted.replacements, task.splits.certify)
        fitted.close()
        feeds = {"x": data["x"][task.splits.certify]}
    exits = [r.span.exit for r in fitted.replacements]
    left = [r.span.entry if form == "identity" else r.span.exit for r in fitted.replacements]
    truth, there = run(model, feeds, exits), run(made.proto, feeds, left)
    for error, exit_, value in zip(found, exits, left, strict=True):
        y = truth[exit_].reshape(-1, truth[exit_].shape[-1])
        gap = np.square(y - there[value].reshape(y.shape)).sum()
        assert error == pytest.approx(gap / np.square(y - y.mean(0)).sum(), rel=1e-3)
        assert error > 1e-3
