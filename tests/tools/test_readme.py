"""README.md and docs/ do what they say: their commands, and the README's Python, run as they stand.

Blocks marked `sh` are run, those marked `text` are not.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import click
import pytest

from blockfold.tests.tools import pages
from blockfold.tests.tools.harness import CommandLine, contents
from blockfold.tests.tools.modules import Network, network, samples
from blockfold.tests.tools.pages import PAGES, ROOT, SHELL, blocks, commands
from blockfold.tools.cli import cli
from blockfold.tools.demo import bundle

README = pages.README.read_text()
OTHER_TOOLS = {"--no-deps"}
"""Options in the README's text that are not ours."""

OURS, RUN = "blockfold", ("blockfold", "python")
INSTALL = ("make", "pip", "olive")
"""Not run here: they set up the environment, or have a test of their own."""

WITH_COMMANDS = [page for page in PAGES if commands(page.read_text())]
TO_RUN = [page for page in WITH_COMMANDS if page.name != "olive.md"]  # see test_olive.py


def by_name(page: Path) -> str:
    return page.name


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where model.onnx and samples.npz are those of the demo."""
    shutil.copy(bundle.MODEL, tmp_path / "model.onnx")
    shutil.copy(bundle.DATA, tmp_path / "samples.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_blocks_and_commands_are_found() -> None:
    text = "a\n```sh\n$ x --y 1%  # z\n# w\nmake demo\n```\n```python\nimport x\n```\n"
    assert commands(text) == [["x", "--y", "1%"], ["make", "demo"]]
    assert blocks(text, "python") == ["import x\n"]
    assert blocks(text, "text") == []
    assert pages.files("Here is `y.py`:\n\n```python\nz\n```\n" + text) == {"y.py": "z\n"}
    assert {"README.md", "serving.md", "olive.md"} <= set(map(by_name, WITH_COMMANDS))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_line_is_of_a_kind_that_is_checked(page: Path) -> None:
    text = page.read_text()
    assert {words[0] for words in commands(text)} <= {*RUN, *INSTALL}
    languages = re.findall(r"^```(\w*)$", text, re.MULTILINE)
    assert set(languages) <= {*SHELL, "python", "text", "json", "yaml", ""}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in commands(README) if words[0] == "make" for word in words[1:]}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=by_name)
def test_verbs_and_options_exist(page: Path) -> None:
    for words in commands(page.read_text()):
        if words[0] == OURS:
            verb = cli.commands[words[1]]
            given = {word for word in words if re.match(r"--?[a-z]", word)}
            assert given <= options_of(verb), f"{page.name}: {' '.join(words)}"


def test_options_that_the_readme_names_exist() -> None:
    ours = set().union(*map(options_of, cli.commands.values()))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= ours | OTHER_TOOLS


def options_of(verb: click.Command) -> set[str]:
    found = (p.opts for p in verb.params if isinstance(p, click.Option))
    return {name for names in found for name in names}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [to for to in links if "://" not in to and not (page.parent / to).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_no_placeholder_is_left(page: Path) -> None:
    assert re.findall(r"^[A-Z]{3,}$|TODO|FIXME|XXX", page.read_text(), re.MULTILINE) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=by_name)
def test_commands_run_one_after_the_other(page: Path, example: Path, command: CommandLine) -> None:
    text = page.read_text()
    for name, content in pages.files(text).items():
        (example / name).write_text(content)
    for words in commands(text):
        if words[0] == OURS:
            ran = command(*words[1:])
            assert (ran.code, ran.err) == (0, ""), f"{' '.join(words)}: {ran.err}"
            assert ran.out
        elif words[0] in RUN:
            pages.shell(words, example)
    found = contents(example)
    assert found["again.onnx"] == found["small.onnx"]  # as the text says
    for name in pages.files(text):
        sys.modules.pop(Path(name).stem, None)


def shallow() -> Network:
    """A module whose blocks do almost nothing."""
    module = network()
    for name, parameter in module.named_parameters():
        if "down" in name:
            parameter.data *= 1e-3
    return module


@pytest.mark.slow
@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_runs(code: str, example: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given: dict[str, object] = {"__name__": "__main__"}
    if "module" in code:
        given |= {"module": shallow(), "samples": samples(800)["x"]}
    exec(compile(code, "README.md", "exec"), given)
    out, err = capfd.readouterr()
    assert ("Verdict" in out, err) == ("result.verdict" in code, "")
    made = {"small.onnx", "small.plan.json", "small.plan.safetensors"}
    assert contents(example).keys() == made | {"model.onnx", "samples.npz"}
