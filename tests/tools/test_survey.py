"""`survey`: parts, processes and interrupted runs give what `inspect --data` gives at once."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import blockfold
from blockfold.ir.errors import BadInput
from blockfold.passes.evidence import Evidence
from blockfold.passes.task import Advance, silent
from blockfold.tests.networks import labelled
from blockfold.tests.together import together
from blockfold.tests.tools.harness import (
    CAREFUL,
    SAMPLES,
    CommandLine,
    Files,
    contents,
    network,
    save,
    untouched,
)
from blockfold.tests.tools.modules import network as torch_network
from blockfold.tests.tools.modules import samples as torch_samples
from blockfold.tools import surveying
from blockfold.tools.surveying import Surveyed, survey_to

QUICK: dict[str, Any] = {"threads": 1, "provider": "cpu"}
DUE = SAMPLES // 2
"""Fit and select are half of the samples."""


def assert_same(found: Any, wanted: Any, where: str = "") -> None:
    """Equal documents, numbers to the rounding of float32 products."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted.keys() - {"samples"}:
            assert_same(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for at, pair in enumerate(zip(found, wanted, strict=True)):
            assert_same(*pair, f"{where}/{at}")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5), where
    else:
        assert found == wanted, where


def test_parts_add_up_to_what_data_shows(
    command: CommandLine, files: Files, tmp_path: Path
) -> None:
    names = [f"part{k}.safetensors" for k in (1, 2, 3)]
    for k, name in enumerate(names, 1):
        data = ("--data", files.data, "--shard", f"{k}/3", "--json")
        ran = command("survey", files.model, *data, "-o", tmp_path / name)
        assert ran.document["written"] == [str(tmp_path / name)]
        assert ran.document["due"] == DUE
        assert ran.document["held"] in (66, 67)
    wanted = command("inspect", files.model, "--data", files.data, "--json").document
    parts = [tmp_path / name for name in names]
    found = command("inspect", files.model, *parts, "--json").document
    assert_same(found, wanted)
    assert (found["samples"], wanted["samples"]) == ({"held": DUE, "due": DUE}, None)
    whole = tmp_path / "all.safetensors"
    ran = command("survey", files.model, *parts, "-o", whole)
    assert (ran.code, ran.err) == (0, "")
    assert f"statistics of {DUE} of {DUE} samples" in ran.out
    assert_same(command("inspect", files.model, whole, "--json").document, wanted)
    ran = command("inspect", files.model, parts[1])
    assert f"from statistics of 67 of {DUE} samples" in ran.out


def test_an_interrupted_survey_goes_on(files: Files, tmp_path: Path) -> None:
    """Whatever stops it, the file holds what was gathered until then."""
    path = tmp_path / "s.safetensors"
    seen: list[int] = []

    def stop(evidence: Evidence) -> None:
        seen.append(evidence.held)
        Surveyed(evidence).save(path)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blockfold.survey(files.model, files.data, every=60, kept=stop, **QUICK)
    assert seen == [60, 120]
    ran: list[int] = []

    def told(name: str, total: int) -> AbstractContextManager[Advance]:
        if name == "survey":
            ran.append(total)
        return silent(name, total)

    found = survey_to(path, files.model, files.data, resume=True, stage=told, **QUICK)
    assert (found.held, found.due, ran) == (DUE, DUE, [DUE - 120])
    assert contents(tmp_path).keys() == {"s.safetensors"}
    again = survey_to(path, files.model, files.data, resume=True, **QUICK)
    assert again.held == DUE
    wanted = blockfold.inspect(files.model, files.data, **QUICK).survey
    shown = blockfold.inspect(files.model, statistics=[path], **QUICK).survey
    assert wanted is not None
    assert shown is not None
    for a, b in zip(shown.spans, wanted.spans, strict=True):
        assert a.affine_r2 == pytest.approx(b.affine_r2, rel=1e-5)


def test_without_resume_a_file_is_made_anew(
    command: CommandLine, files: Files, tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    words = ("survey", files.model, "--data", files.data, "-o", path, "--json", "--shard")
    assert command(*words, "1/2").document["held"] == DUE / 2
    assert command(*words, "2/2").document["held"] == DUE / 2
    assert command(*words, "1/2", "--resume").document["held"] == DUE


def test_data_of_a_second_day_is_added(command: CommandLine, files: Files, tmp_path: Path) -> None:
    more = save(tmp_path / "more.npz", labelled(network(), 100, seed=5))
    path = tmp_path / "s.safetensors"
    command("survey", files.model, "--data", files.data, "-o", path)
    ran = command("survey", files.model, path, "--data", more, "-o", path, "--json")
    assert (ran.document["held"], ran.document["due"]) == (DUE + 50, DUE + 50)


@pytest.mark.slow
def test_a_module_s_statistics_are_those_of_its_export(tmp_path: Path) -> None:
    module, data = torch_network(), torch_samples(40)
    blockfold.survey(module, data, **QUICK).save(tmp_path / "s.safetensors")
    found = blockfold.inspect(
        module,
        statistics=[tmp_path / "s.safetensors"],
        example_inputs={"x": torch.from_numpy(data["x"][:2])},
    )
    wanted = blockfold.inspect(module, data, **QUICK)
    assert found.survey is not None
    assert wanted.survey is not None
    assert found.samples == (20, 20)
    assert [r.cosine for r in found.survey.spans] == [r.cosine for r in wanted.survey.spans]


WRONG = [
    (["--shard", "3/2"], "shard 3/2"),
    (["--shard", "0/2"], "shard 0/2"),
    (["--shard", "half"], "write 2/4"),
    (["--every", "0"], "every"),
    (["nowhere.safetensors"], "cannot read the statistics"),
    (["samples.npz"], "no statistics"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_wrong_use_is_refused_and_nothing_written(
    words: list[str],
    said: str,
    command: CommandLine,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(files.folder)
    with untouched(files.folder, tmp_path):
        out = ("-o", tmp_path / "s.safetensors")
        ran = command("survey", files.model, *words, "--data", files.data, *out)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1 or "Usage" in ran.err


def test_wrong_use_from_python_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="every=0"):
        blockfold.survey(files.model, files.data, every=0, **QUICK)
    path = tmp_path / "s.safetensors"
    blockfold.survey(files.model, files.data, shard=(1, 4), **QUICK).save(path)
    with pytest.raises(BadInput, match="drop_cache"):
        blockfold.inspect(files.model, statistics=[path], drop_cache=True)
    with pytest.raises(BadInput, match="--data"):
        blockfold.survey(files.model, **QUICK)


def test_processes_that_read_other_data_are_refused() -> None:
    left = [np.arange(3), np.arange(4)]
    with pytest.raises(BadInput, match=r"3, 4 samples to share"):
        together(2, lambda group: surveying.require_agreement(group, left[group.rank]))
    together(2, lambda group: surveying.require_agreement(group, left[0]))


def test_data_and_statistics_together_are_refused(
    command: CommandLine, files: Files, tmp_path: Path
) -> None:
    path = tmp_path / "s.safetensors"
    command("survey", files.model, "--random-data", "40", "-o", path)
    ran = command("inspect", files.model, path, "--data", files.data)
    assert (ran.code, ran.out) == (2, "")
    assert "not both" in ran.err
    assert "RANDOM" in command("inspect", files.model, path).out
    ran = command("survey", files.model, "--data", files.data, "-o", files.data)
    assert (ran.code, "is an input" in ran.err) == (2, True)
    ran = command("survey", files.model, "--data", files.data, "-o", tmp_path / "no" / "s")
    assert (ran.code, "cannot write" in ran.err) == (2, True)


@pytest.mark.slow
def test_processes_of_torchrun_share_the_work(
    command: CommandLine, files: Files, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "s.safetensors"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ("survey", files.model, "--data", files.data, "-o", path, "--every", "90", *CAREFUL)
    ran = subprocess.run(
        [sys.executable, *launcher, "-m", "blockfold", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path_factory.mktemp("logs"))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("wrote") == 1
    assert contents(tmp_path).keys() == {"s.safetensors"}
    found = command("inspect", files.model, path, "--json").document
    assert found["samples"] == {"held": DUE, "due": DUE}
    wanted = command("inspect", files.model, "--data", files.data, "--json").document
    assert_same(found, wanted)
