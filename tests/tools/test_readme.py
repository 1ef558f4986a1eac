"""README.md does what it says: its commands and its Python run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from blockfold.tests.tools.harness import CommandLine, contents
from blockfold.tests.tools.modules import Network, network, samples
from blockfold.tools.cli import cli
from blockfold.tools.demo import bundle

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHELL = ("sh", "console")
OTHER_TOOLS = {"--no-deps"}
"""Options in the text that are not ours."""


def blocks(*languages: str, text: str = README) -> list[str]:
    """The fenced blocks in these languages, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def commands(text: str = README) -> list[list[str]]:
    """Every line of the shell blocks as words, without prompts and comments."""
    lines = [line for block in blocks(*SHELL, text=text) for line in block.splitlines()]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [found for found in words if found]


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
    assert blocks("python", text=text) == ["import x\n"]
    assert blocks("text", text=text) == []


def test_every_line_is_of_a_kind_that_is_checked() -> None:
    assert {words[0] for words in commands()} == {"make", "pip", "blockfold"}
    languages = re.findall(r"^```(\w+)$", README, re.MULTILINE)
    assert {"sh", "python"} <= set(languages) <= {*SHELL, "python", "text"}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in commands() if words[0] == "make" for word in words[1:]}
    assert {"demo", "test"} <= named <= targets


def test_verbs_and_options_exist() -> None:
    options = {
        name
        for verb in cli.commands.values()
        for parameter in verb.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }
    verbs = {words[1] for words in commands() if words[0] == "blockfold"}
    assert verbs <= cli.commands.keys()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= options | OTHER_TOOLS


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    missing = [to for to in links if "://" not in to and not (ROOT / to).exists()]
    assert missing == []


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"^[A-Z]{3,}$|TODO|FIXME|XXX", README, re.MULTILINE) == []


@pytest.mark.slow
def test_commands_run_one_after_the_other(example: Path, command: CommandLine) -> None:
    ours = [words[1:] for words in commands() if words[0] == "blockfold"]
    assert {"optimize", "apply"} <= {words[0] for words in ours}
    for words in ours:
        ran = command(*words)
        assert (ran.code, ran.err) == (0, ""), f"blockfold {' '.join(words)}: {ran.err}"
        assert ran.out
    found = contents(example)
    assert found["again.onnx"] == found["small.onnx"]  # as the text says


def shallow() -> Network:
    """A module whose blocks do almost nothing."""
    module = network()
    for name, parameter in module.named_parameters():
        if "down" in name:
            parameter.data *= 1e-3
    return module


@pytest.mark.slow
@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, example: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given: dict[str, object] = {"__name__": "__main__"}
    if "module" in code:
        given |= {"module": shallow(), "samples": samples(800)["x"]}
    exec(compile(code, "README.md", "exec"), given)
    out, err = capfd.readouterr()
    assert ("Verdict" in out, err) == ("result.verdict" in code, "")
    made = {"small.onnx", "small.plan.json", "small.plan.safetensors"}
    assert contents(example).keys() == made | {"model.onnx", "samples.npz"}
