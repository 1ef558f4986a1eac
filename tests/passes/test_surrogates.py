"""What a surrogate is solved by: as many rows as are said, whatever the network."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.onnx_file import read
from blockfold.passes.costs import CostModel, Costs
from blockfold.passes.layout import lay_out
from blockfold.passes.surrogates import Wish
from blockfold.passes.task import make_task
from blockfold.passes.trial import Trials
from blockfold.tests.networks import masked_encoder, residual_cnn, residual_mlp, samples

NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": residual_mlp,
    "masked": masked_encoder,
    "feature maps": lambda: residual_cnn((4, 6), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_prior_has_the_rows_that_are_said_of_it(name: str) -> None:
    """The rows said are what the surrogate is taken to store, long before any prior is made."""
    source = read(NETWORKS[name]())
    with open_data(samples(source.proto, 40), source.inputs) as data:
        task = make_task(source, data, split(40), Runtime(threads=1))
        layout = lay_out(task)
        costs = CostModel(layout.anatomies, Costs(1.0, {}, {}))
        with Trials(task, layout, costs, None) as trials:
            forms = trials.forms
            wishes = {
                Wish(span, form)
                for span in layout.spans
                for offered in forms.offered(span)
                for form in (offered, forms.richer(span, offered))
            }
            assert {wish.form for wish in wishes} >= {"identity", "folded"}
            for wish in wishes:
                asked = forms.asked(wish)
                assert asked.prior.shape == (asked.columns, wish.span.width), wish
