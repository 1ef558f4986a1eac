"""The report: it stands by itself, tells what happened, and lets no name in a file do harm."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

import blockfold
from blockfold.passes import optimize as main_job
from blockfold.passes.verify import verify
from blockfold.tests.networks import labelled
from blockfold.tests.tools.harness import (
    BLOCKS,
    CAREFUL,
    DROP,
    PLANTED,
    CommandLine,
    Files,
    contents,
    network,
    untouched,
)
from blockfold.tests.tools.reading import Page
from blockfold.tools.report.drawing import distinct, label, short_labels

OPTIMIZE = ["optimize", "model.onnx", "--data", "samples.npz", "-o", "out.onnx"]
HOSTILE = '<img src="http://x.test/a" onerror=alert(1)>{{7*7}}'
MOST_BYTES = 5_000_000


def assert_stands_alone(page: Page) -> None:
    """Nothing is fetched from elsewhere, no handler hides in a tag, all figures have numbers."""
    assert page.leads == []
    assert page.handlers == []
    assert page.tags.count("script") == 3, "the plots, plotly, and what draws them"
    assert page.size_bytes < MOST_BYTES
    assert page.tables.keys() == page.plots.keys() != set()
    bare = [name for name, rows in page.tables.items() if rows < 2]
    assert bare == [], "figures without a table"
    empty = [
        name
        for name, views in page.plots.items()
        if not views or not all(view["data"] for view in views)
    ]
    assert empty == []


def test_the_report_of_a_good_run(small: Path) -> None:
    page = Page(small.with_suffix(".report.html"))
    assert_stands_alone(page)
    for words in (
        "small Promise kept",
        "on 200 samples: 100.00 % -> 100.00 %",
        "certified: drop at most"[1:],
        "promised 5.00 points: kept",
        "Before and after",
        "parameters",
        f"blocks.{PLANTED} affine 1.00 0.0000",
        "Quality against latency",
        "Predicted against measured",
        "block redundancy",
        "How alike the layers are",
        "modularity",
        "What cannot be replaced",
        "CPUExecutionProvider",
    ):
        assert words in page.text
    assert {"strip-0", "pareto", "foretold", "spans-0", "cka-0", "steps-0"} == page.plots.keys()
    plan = json.loads(small.with_suffix(".plan.json").read_text())
    assert plan["exit_errors"] == [pytest.approx(0.0, abs=1e-6)]
    assert plan["model"]["sha256"] in page.text
    chosen = [trace for trace in page.plots["pareto"][0]["data"] if trace["name"] == "chosen"]
    assert [len(trace["x"]) for trace in chosen] == [1]


def test_the_heat_map_holds_what_was_measured(small: Path) -> None:
    views = dict(
        zip(
            ("damage", "error", "time saved", "affine R²", "block redundancy", "cosine"),
            Page(small.with_suffix(".report.html")).plots["spans-0"],
            strict=True,
        )
    )
    r2 = views["affine R²"]["data"][0]
    planted = r2["x"].index(f"blocks.{PLANTED}")
    assert r2["z"][planted][planted] == pytest.approx(1.0, abs=1e-5)
    known = [value for row in r2["z"] for value in row if value is not None]
    assert sorted(known)[-2] < 0.999
    cosine = [row[:BLOCKS] for row in views["cosine"]["data"][0]["z"][:BLOCKS]]
    known_at = [[value is not None for value in row] for row in cosine]
    assert known_at == [[j >= i for j in range(BLOCKS)] for i in range(BLOCKS)]


def test_the_command_is_the_one_that_ran(here: Path, command: CommandLine) -> None:
    assert command(*OPTIMIZE, "--max-drop", DROP).code == 0
    page = Page(here / "out.report.html")
    given = shlex.join(["blockfold", "optimize", *CAREFUL, *OPTIMIZE[1:], "--max-drop", DROP])
    assert given in page.text


def rejected(here: Path, command: CommandLine, *budget: str) -> Page:
    """The report of a run that wrote nothing else."""
    (here / "out.onnx").write_bytes(b"an older file")
    before = contents(here)
    ran = command(*OPTIMIZE, *budget)
    assert (ran.code, ran.out) == (1, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.strip().endswith("what was tried is in out.report.html")
    after = contents(here)
    assert {name for name in after if before.get(name) != after[name]} == {"out.report.html"}
    page = Page(here / "out.report.html")
    assert_stands_alone(page)
    assert "No model was written" in page.text
    assert "What may be tried" in page.text
    return page


def test_a_budget_that_cannot_be_met(here: Path, command: CommandLine) -> None:
    page = rejected(here, command, "--remove", "9")
    assert "out Cannot be met" in page.text
    assert "Nearest plans" in page.text
    assert "Ask for less: at most" in page.text
    assert "foretold" not in page.plots


def test_a_promise_that_was_not_kept(
    here: Path, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = verify

    def unlucky(*given: Any) -> Any:
        found = honest(*given)
        return replace(found, bound=replace(found.bound, upper=0.0623))

    monkeypatch.setattr(main_job, "verify", unlucky)
    page = rejected(here, command, "--max-drop", DROP)
    assert "out Not kept" in page.text
    assert "promised 5.00 points: BROKEN" in page.text
    assert "Promise less: --max-drop 6.3% or more" in page.text
    assert "Give fresh samples" in page.text
    assert "foretold" in page.plots


def test_no_report_where_none_is_wanted(here: Path, command: CommandLine) -> None:
    with untouched(here):
        ran = command(*OPTIMIZE, "--remove", "9", "--no-report")
    assert (ran.code, "report" in ran.err) == (1, False)
    assert command(*OPTIMIZE, "--max-drop", DROP, "--no-report").code == 0
    assert not (here / "out.report.html").exists()


def test_a_report_that_cannot_be_written_hides_no_verdict(here: Path, command: CommandLine) -> None:
    (here / "out.report.html").mkdir()
    ran = command(*OPTIMIZE, "--remove", "9")
    assert ran.code == 1
    assert ran.err.startswith("blockfold: cannot meet --remove 9")
    assert "is a folder" in ran.err


def test_reports_from_python(files: Files, tmp_path: Path) -> None:
    options: dict[str, Any] = {"threads": 1, "provider": "cpu"}
    with pytest.raises(blockfold.NotKept) as caught:
        blockfold.optimize(files.model, files.data, remove=9, **options)
    page = Page(caught.value.report(tmp_path / "why.html"))
    assert "why Cannot be met" in page.text
    assert "Run it again" not in page.text
    inspection = blockfold.inspect(files.model, files.data, **options)
    page = Page(inspection.report(tmp_path / "seen.html"))
    assert_stands_alone(page)
    assert "seen Inspected" in page.text
    assert {"spans-0", "cka-0", "steps-0"} == page.plots.keys()


def test_inspect_writes_a_report_beside_its_tables(here: Path, command: CommandLine) -> None:
    ran = command("inspect", "model.onnx", "--random-data", "60", "--report", "seen.html")
    assert ran.code == 0
    page = Page(here / "seen.html")
    assert_stands_alone(page)
    assert "Made-up data" in page.text
    assert "inspect --provider cpu" in page.text
    command("inspect", "model.onnx", "--report", "bare.html")
    assert "Inspected" in Page(here / "bare.html").text, "without data there are no figures"


def hostile() -> onnx.ModelProto:
    """The network with names that would be markup, if anyone let them."""
    model = network()
    for node in model.graph.node:
        node.name = node.name.replace("blocks.1", f"blocks.1{HOSTILE}".replace("/", "\u2215"))
        for names in (node.input, node.output):
            names[:] = [HOSTILE if name == "x" else name for name in names]
    model.graph.input[0].name = HOSTILE
    onnx.checker.check_model(model)
    return model


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    model = hostile()
    arrays = labelled(network(), 60)
    arrays[HOSTILE] = arrays.pop("x")
    inspection = blockfold.inspect(model, arrays, threads=1, provider="cpu")
    path = inspection.report(tmp_path / f"a{HOSTILE}.html".replace("/", "\u2215"))
    page = Page(path)
    assert_stands_alone(page)
    assert "img" not in page.tags
    assert "http://x.test" in page.text
    assert "{{7*7}}" in page.text, "nor is it a template"
    shown = json.dumps(page.plots)
    assert "<img" not in shown
    assert "&gt;" in shown


def test_the_checks_of_a_page_can_fail(small: Path, tmp_path: Path) -> None:
    whole = small.with_suffix(".report.html").read_text()
    for old, new in (
        ("<footer>", '<footer><a href="https://x.test">more</a>'),
        ("<footer>", '<footer><img src="https://x.test/a.png">'),
        ("<footer>", '<footer onclick="alert(1)">'),
        ('<figure id="pareto">', '<figure id="another">'),
        ("<details><summary>Plans", "<div><summary>Plans"),
        ("<footer>", "<footer><script>1</script>"),
    ):
        assert old in whole
        path = tmp_path / "page.html"
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(AssertionError):
            assert_stands_alone(Page(path))


def test_labels_are_short_distinct_and_escaped() -> None:
    assert short_labels(["a.b.0 (1/2)", "a.b.1 (1/2)"]) == ["0 (1/2)", "1 (1/2)"]
    assert short_labels(["a.b", "c"]) == ["a.b", "c"]
    assert short_labels(["a.b"]) == ["a.b"]
    assert distinct(["a", "a", "a ·2", "a"]) == ["a", "a ·2", "a ·2 ·2", "a ·3"]
    assert label("<b>") == "&lt;b&gt;"
    assert label("a" * 30 + "end").endswith("aend")
    assert len(label("a" * 99)) == 28
