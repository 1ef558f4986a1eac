"""How alike layers are, as a person sees it: in 80 columns, nothing cut short."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

import blockfold
from blockfold.passes.score import Survey
from blockfold.tests.networks import labelled, residual_mlp
from blockfold.tools.likeness_tables import MOST_LAYERS, _short, show_similarity


@pytest.fixture(scope="module")
def survey() -> Survey:
    model = residual_mlp(4, affine=(2,))
    found = blockfold.inspect(model, labelled(model, 240), threads=1, provider="cpu").survey
    assert found is not None
    return found


def shown(survey: Survey, **changes: object) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    (found,) = survey.similarities
    show_similarity(console, replace(found, **changes), survey.spans)  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_every_unit_has_every_figure(survey: Survey) -> None:
    lines = shown(survey)
    for word in ("CKA", "sliced W2", "gain of Q", "entropy", "angle", "NBL"):
        assert word in lines[0]
    (planted,) = [line for line in lines if line.startswith("blocks.2 ")]
    # An affine block: no rectifier, and no error but rounding for the best map
    assert planted.split()[4] == "-"
    assert float(planted.split()[6]) < 1e-5
    (other,) = [line for line in lines if line.startswith("blocks.1 ")]
    assert "-" not in other.split()


def test_all_pairs_of_layers(survey: Survey) -> None:
    (found,) = survey.similarities
    layers = len(found.cka)
    lines = shown(survey)
    (head,) = [at for at, line in enumerate(lines) if line.split()[:3] == ["CKA", "0", "1"]]
    rows = [line.split() for line in lines[head + 1 : head + layers]]
    assert [len(row) for row in rows] == list(range(2, layers + 1))
    assert float(rows[2][2]) == pytest.approx(found.cka[3][1], abs=0.006)


def test_more_layers_than_columns(survey: Survey) -> None:
    count = MOST_LAYERS + 1
    deep = tuple(tuple(1.0 if i == j else -0.234 for j in range(count)) for i in range(count))
    assert any("--json" in line for line in shown(survey, cka=deep))
    assert not any("-.23" in line for line in shown(survey, cka=deep))
    most = tuple(row[:-1] for row in deep[:-1])
    assert any(line.count("-.23") == MOST_LAYERS - 1 for line in shown(survey, cka=most))


@pytest.mark.parametrize("classes", ["labels", "the model's own classes"])
def test_whose_classes_they_are_is_said(survey: Survey, classes: str) -> None:
    assert f"Q: classes are {classes}" in " ".join(shown(survey, communities=classes))


def test_plateaus_of_the_curve_are_marked(survey: Survey) -> None:
    text = " ".join(shown(survey, modularity=(0.1, 0.5, 0.51, 0.9, 0.8)))
    assert "Q by layer: .10 .50 .51* .90 .80*" in text
    assert "Q by layer" not in " ".join(shown(survey, modularity=None, communities=None))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.0"), (0.996, "1.0"), (0.5, ".50"), (-0.001, ".00"), (-0.25, "-.25")],
)
def test_two_decimals(value: float, text: str) -> None:
    assert _short(value) == text
