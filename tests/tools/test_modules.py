"""Torch modules through the main jobs: what comes back, what is left alone, what is refused."""

from __future__ import annotations

import copy
import hashlib
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import blockfold
from blockfold.ir.onnx_file import read
from blockfold.ir.torch_module import CompressedModule
from blockfold.tests.networks import Arrays, run
from blockfold.tests.tools.harness import (
    CAREFUL,
    DROP,
    CommandLine,
    hurry,
    save,
    subprocess_run,
    write_files,
)
from blockfold.tests.tools.modules import WIDTH, Network, network, samples
from blockfold.tools.modules import ModuleResult

QUICK: dict[str, Any] = {"threads": 1, "provider": "cpu"}


def example() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """What a command line may name as a model."""
    return network(), {"x": torch.zeros(2, 7, WIDTH)}


def neither() -> int:
    return 3


@pytest.fixture(scope="module")
def module() -> Network:
    return network().train()


@pytest.fixture(scope="module")
def result(module: Network) -> ModuleResult:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        found = blockfold.optimize(module, samples(), remove=2, metric="nmse", **QUICK)
    assert isinstance(found, ModuleResult)
    return found


def outputs(module: nn.Module, arrays: Arrays) -> np.ndarray:
    with torch.no_grad():
        made: torch.Tensor = module(torch.from_numpy(arrays["x"]))
    return made.numpy()


def state(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_the_module_computes_what_the_certified_file_does(result: ModuleResult) -> None:
    fresh = samples(30, seed=1)
    theirs = run(result.onnx.proto, fresh)
    ours = outputs(result.model, fresh)
    assert isinstance(result.model, torch.fx.GraphModule)
    assert np.abs(ours - next(iter(theirs.values()))).max() < 1e-4
    assert len(ours) == 30, "the first axis is free"


def test_the_original_is_left_alone() -> None:
    module = network().train()
    module.blocks[0].eval()
    module.blocks[1].register_forward_hook(lambda *_: None)
    before, modes = state(module), [part.training for part in module.modules()]
    blockfold.inspect(module, samples(40), **QUICK)
    assert state(module) == before
    assert [part.training for part in module.modules()] == modes
    assert len(module.blocks[1]._forward_hooks) == 1


def test_what_remains_keeps_its_keys(module: Network, result: ModuleResult) -> None:
    ours, theirs = result.model.state_dict(), module.state_dict()
    own = {name for name in ours if name.startswith("blockfold.")}
    assert ours.keys() - own < theirs.keys()
    assert {"head.weight", "norm.running_mean", "norm.num_batches_tracked"} <= ours.keys()
    assert "table" not in ours
    again = copy.deepcopy(result.model)
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(ours)
    fresh_rows = samples(5, seed=2)
    assert np.array_equal(outputs(again, fresh_rows), outputs(result.model, fresh_rows))


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_copies_are_whole(result: ModuleResult, way: str) -> None:
    made = (
        pickle.loads(pickle.dumps(result.model)) if way == "pickle" else copy.deepcopy(result.model)
    )
    fresh = samples(5, seed=2)
    assert isinstance(made, CompressedModule)
    assert np.array_equal(outputs(made, fresh), outputs(result.model, fresh))
    assert made.state_dict().keys() == result.model.state_dict().keys()
    made.train()
    assert not np.array_equal(outputs(made, fresh), outputs(made, fresh)), "dropout is at rest"


def test_it_trains(module: Network, result: ModuleResult) -> None:
    """Dropout draws, BatchNorm counts, and a few steps of distillation come nearer."""
    student = copy.deepcopy(result.model)
    x = torch.from_numpy(samples(256, seed=3)["x"])
    with torch.no_grad():
        teacher = copy.deepcopy(module).eval()(x)
        student.head.bias += 1.0  # type: ignore[operator,union-attr]  # far enough to come nearer

    def loss() -> torch.Tensor:
        return functional.mse_loss(student(x), teacher)

    before = loss().item()
    student.train()
    mean = student.get_buffer("norm.running_mean").clone()
    assert not torch.equal(student(x), student(x))
    assert not torch.equal(mean, student.get_buffer("norm.running_mean"))
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    student.eval()
    assert loss().item() < 0.5 * before
    assert torch.equal(student(x), student(x))


def test_it_moves(result: ModuleResult) -> None:
    """The devices that the graph names go with the weights; tried on one without memory."""
    moved = copy.deepcopy(result.model).to("meta")
    assert moved(torch.zeros(3, 7, WIDTH, device="meta")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_it_runs_on_cuda(result: ModuleResult) -> None:
    moved = copy.deepcopy(result.model).cuda()
    fresh = samples(5, seed=2)
    ours = moved(torch.from_numpy(fresh["x"]).cuda()).detach().cpu().numpy()
    assert np.abs(ours - outputs(result.model, fresh)).max() < 1e-4


@pytest.mark.parametrize("name", ["out.onnx", "out.pt2"])
def test_it_is_saved_whole(result: ModuleResult, name: str, tmp_path: Path) -> None:
    written = result.save(tmp_path / name)
    fresh = samples(5, seed=2)
    assert {path.name for path in written} == {name, "out.plan.json", "out.plan.safetensors"}
    if name.endswith(".pt2"):
        program: Any = torch.export.load(tmp_path / name)
        ours = program.module()(x=torch.from_numpy(fresh["x"])).detach().numpy()
    else:
        (ours,) = run(tmp_path / name, fresh).values()
    assert np.abs(ours - outputs(result.model, fresh)).max() < 1e-5


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-5), (torch.bfloat16, 0.05)])
def test_a_plan_is_replayed_in_another_dtype(
    module: Network, result: ModuleResult, dtype: torch.dtype, close: float, tmp_path: Path
) -> None:
    result.save(tmp_path / "out.onnx")
    other = copy.deepcopy(module).to(dtype)
    x = torch.from_numpy(samples(5, seed=2)["x"])
    replayed = blockfold.apply(other, tmp_path / "out.plan.json", example_inputs=(x.to(dtype),))
    made = replayed.model(x.to(dtype))
    assert made.dtype == dtype
    assert (made.double() - result.model(x).double()).abs().max() < close
    same = blockfold.apply(module, tmp_path / "out.plan.json", samples(4))
    assert torch.equal(same.model(x), result.model(x))


def test_programs_are_taken() -> None:
    program = torch.export.export(network().eval(), (torch.zeros(2, 7, WIDTH),), strict=False)
    found = blockfold.inspect(program)
    assert [b.name for b in found.anatomies[0].blocks] == [f"blocks.{i}" for i in range(4)]


def test_the_command_line_takes_a_module(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    save(tmp_path / "samples.npz", samples())
    ran = command(
        "optimize",
        f"{__name__}:example",
        *("--data", tmp_path / "samples.npz", "--remove", "1", "--metric", "nmse"),
        *("-o", tmp_path / "out.onnx"),
    )
    assert ran.code == 0, ran.err
    read(tmp_path / "out.onnx")


def test_a_hugging_face_folder_is_taken(command: CommandLine, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
    )
    BertModel(config).save_pretrained(tmp_path)
    np.savez(tmp_path / "text.npz", input_ids=np.ones((40, 6), np.int64))
    ran = command("inspect", tmp_path, "--data", tmp_path / "text.npz", "--json")
    assert ran.code == 0, ran.err
    assert [b["name"] for b in ran.document["streams"][0]["blocks"]] == [
        f"encoder.layer.{i}" for i in range(3)
    ]


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": Branching()}, ("cannot capture Branching", "torch.where")),
        ({"example_inputs": (torch.zeros(2, 3),)}, ("does not run on the inputs given",)),
        ({"example_inputs": {"y": torch.zeros(2, 7, WIDTH)}}, ("does not run on the inputs",)),
        ({"example_inputs": 5}, ("example_inputs is a int", "give a tensor")),
        ({"data": iter([])}, ("give example_inputs",)),
        ({"dynamic_shapes": {"z": {0: torch.export.Dim.AUTO}}}, ("inputs of Network",)),
        (
            {"example_inputs": (torch.zeros(2, 7, WIDTH, device="meta"),)},
            ("the module is on cpu and an example input on meta",),
        ),
    ],
    ids=lambda case: str(next(iter(case))) if isinstance(case, dict) else "",
)
def test_what_cannot_be_taken_is_refused(given: dict[str, Any], words: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"model": network(), "data": samples(40), **QUICK, **given}
    with pytest.raises(blockfold.BlockfoldError) as refused:
        blockfold.optimize(options.pop("model"), options.pop("data"), **options)
    said = str(refused.value)
    assert all(word in said for word in words), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", f"{__name__}:neither"), "gives a int"),
        (("inspect", f"{__name__}:nothing"), "has no 'nothing'"),
        (("inspect", f"{__name__}:example"), "streams"),
        (("verify", f"{__name__}:example", "x.onnx", "--random-data", "4"), "cannot read"),
    ],
)
def test_names_of_modules(command: CommandLine, arguments: tuple[str, ...], words: str) -> None:
    ran = command(*arguments, "--json")
    assert words in ran.out
    assert ran.code == (0 if words == "streams" else 2)


def test_options_of_modules_are_for_modules() -> None:
    with pytest.raises(blockfold.BadInput, match="for torch modules"):
        blockfold.inspect("model.onnx", example_inputs=(torch.zeros(1),))


WITHOUT_TORCH = """
import sys

class Absent:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] in ("torch", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
from blockfold.tools.cli import main
main()
"""


def test_without_torch_onnx_works_and_modules_are_refused(tmp_path: Path) -> None:
    """As in an environment that has no torch: importing it fails."""

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=300,
            check=False,
        )

    write_files(tmp_path)
    done = ran(
        *("optimize", "model.onnx", "--data", "samples.npz", "--max-drop", DROP),
        *("-o", "out.onnx", *CAREFUL),
    )
    assert done.returncode == 0, done.stderr
    refused = ran("inspect", "torchvision.models:resnet18")
    assert refused.returncode == 2
    assert "pip install 'blockfold[torch]'" in refused.stderr


def test_the_main_job_is_silent(tmp_path: Path) -> None:
    """Nothing that torch prints, logs or warns of comes through."""
    save(tmp_path / "samples.npz", samples(40))
    ran = subprocess_run(
        *("inspect", "blockfold.tests.tools.test_modules:example"),
        *("--data", "samples.npz", "--json"),
        cwd=tmp_path,
    )
    assert ran.code == 0, ran.err
    assert "torch" not in ran.err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blockfold.inspect(network(), samples(40), **QUICK)
