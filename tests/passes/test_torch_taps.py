"""Hooks of training penalties: where they hold, which blocks they find, and what they refuse."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from blockfold.ir.errors import BadInput
from blockfold.passes.condition import CKASR, LaCoOT, Penalty
from blockfold.passes.torch_taps import Tap, find_blocks
from blockfold.tests.penalised import (
    BATCH,
    BOTH,
    WIDTH,
    Block,
    Net,
    Tupled,
    backward,
    gradient,
    hooks,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(BATCH, 4)


# Where their hooks hold


@BOTH
def test_the_model_is_as_before(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net()
    before, state = net(x), copy.deepcopy(net.state_dict())
    with make(net, weight=1.0) as penalty:
        assert hooks(net) == 7
        torch.testing.assert_close(net(x), before, rtol=0, atol=0)
        backward(penalty.penalty())
    assert hooks(net) == 0
    penalty.close()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with pytest.raises(BadInput, match="closed"):
        penalty.penalty()


@BOTH
def test_an_error_in_the_loop_takes_the_hooks_off_too(make: Callable[..., Penalty]) -> None:
    net = Net()
    with pytest.raises(ZeroDivisionError), make(net, weight=1.0):
        raise ZeroDivisionError
    assert hooks(net) == 0


@BOTH
def test_it_is_of_the_last_pass(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net()

    def value(*passes: torch.Tensor) -> float:
        with make(net, weight=1.0) as penalty:
            for batch in passes:
                net(batch)
            torch.manual_seed(3)
            return float(penalty.penalty().detach())

    assert value(torch.randn(BATCH, 4), x) == value(x) != value(torch.randn(BATCH, 4))


@BOTH
def test_two_penalties_at_once(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net()
    with make(net, weight=1.0) as outer, LaCoOT(net, ["body.2"], weight=1.0) as inner:
        net(x)
        inner.close()
        assert float(outer.penalty().detach()) > 0


@BOTH
def test_copies_report_nothing(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net()
    with make(net, weight=1.0) as penalty:
        twin = copy.deepcopy(net)
        twin(x)
        with pytest.raises(BadInput, match="no forward pass"):
            penalty.penalty()


@BOTH
def test_first_of_a_tuple_and_keywords(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    class Keyword(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            for block in self.body:
                x = block(x=x)[0]
            return x

    net = Keyword(Tupled(), Tupled())
    plain = Net(Block(), Block())
    plain.load_state_dict(net.state_dict())
    found = []
    for model in (net, plain):
        with make(model, weight=1.0) as penalty:
            model(x)
            torch.manual_seed(2)
            found.append(penalty.penalty())
    torch.testing.assert_close(found[0], found[1])


@BOTH
def test_autocast_is_computed_in_float32(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net()
    found = []
    for enabled in (False, True):
        with make(net, weight=1.0) as penalty:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                net(x)
                torch.manual_seed(2)
                found.append(penalty.penalty())
            backward(found[-1])
    assert found[1].dtype == torch.float32
    torch.testing.assert_close(found[1], found[0], rtol=0.03, atol=1e-3)


@BOTH
def test_models_in_half_precision(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net().to(torch.bfloat16)
    with make(net, weight=1.0) as penalty:
        net(x.to(torch.bfloat16))
        found = penalty.penalty()
        backward(found)
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(gradient(net)).all())


@BOTH
@pytest.mark.parametrize("names", [None, ["body.0", "body.2"], ["module.body.0", "module.body.2"]])
def test_data_parallel_is_looked_through(
    make: Callable[..., Penalty], names: list[str] | None, x: torch.Tensor
) -> None:
    net = nn.DataParallel(Net())
    blocks = [names] if names and make is CKASR else names
    with make(net, blocks, weight=1.0) as penalty:
        net(x)
        backward(penalty.penalty())
    assert hooks(net) == 0


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    place = (tmp_path / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.usefixtures("group")
@BOTH
def test_distributed_is_looked_through(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = nn.parallel.DistributedDataParallel(Net())
    with make(net, weight=1.0) as penalty:
        loss = net(x).square().mean() + penalty.penalty()
        backward(loss)
    assert bool((gradient(net.module) != 0).any())


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.parallel.DistributedDataParallel])
@pytest.mark.parametrize("half", [False, True])
@BOTH
def test_wrapped_models_learn_what_the_bare_one_does(
    make: Callable[..., Penalty],
    half: bool,
    wrap: Callable[[nn.Module], nn.Module],
    x: torch.Tensor,
) -> None:
    """Two steps of training, alone and wrapped, under autocast or not: the same weights."""
    found = []
    for wrapped in (False, True):
        torch.manual_seed(1)
        net = Net()
        before = copy.deepcopy(net.state_dict())
        model = wrap(net) if wrapped else net
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with make(model, weight=1.0) as penalty:
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = model(x).square().mean() + penalty.penalty()
                optimizer.zero_grad()
                backward(loss)
                optimizer.step()
        found.append(net.state_dict())
        assert any(not torch.equal(before[name], value) for name, value in found[-1].items())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


@BOTH
def test_checkpointed_blocks(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    class Saving(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            for block in self.body:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    net, gradients = Saving(), []
    for forward in (Saving.forward, Net.forward):
        net.zero_grad()
        with make(net, weight=1.0) as penalty:
            net.forward = forward.__get__(net)  # type: ignore[method-assign]
            net(x)
            torch.manual_seed(2)
            backward(penalty.penalty())
        gradients.append([p.grad for p in net.body.parameters()])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@BOTH
def test_it_runs_on_cuda_under_autocast(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net().cuda()
    with make(net, weight=1.0) as penalty, torch.autocast("cuda", torch.float16):
        net(x.cuda())
        found = penalty.penalty()
    backward(found)
    assert found.is_cuda and found.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own compiler
@BOTH
def test_compiled_models(make: Callable[..., Penalty], x: torch.Tensor) -> None:
    net = Net()
    found = []
    for model in (net, torch.compile(net, backend="eager")):
        with make(net, weight=1.0) as penalty:
            model(x)
            torch.manual_seed(2)
            found.append(float(penalty.penalty().detach()))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_replicas_report_each_in_its_thread() -> None:
    class Meet(nn.Module):
        """Waits until the other replica is inside as well."""

        def __init__(self) -> None:
            super().__init__()
            self.here = threading.Barrier(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.here.wait(timeout=30)
            return 2 * x

    block = Meet()
    replicas = [block._replicate_for_data_parallel() for _ in range(2)]  # type: ignore[no-untyped-call]
    batches = [torch.randn(4, WIDTH), torch.randn(4, WIDTH)]
    tap = Tap(nn.Sequential(block), ["0"])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda place: replicas[place](batches[place]), range(2)))
    calls = tap.calls()["0"]
    assert len(calls) == 2
    assert all(torch.equal(call.y, 2 * call.x) for call in calls)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than 2 CUDA devices here")
@BOTH
def test_replicas_on_several_devices(make: Callable[..., Penalty]) -> None:
    net = nn.DataParallel(Net().cuda())
    with make(net, weight=1.0) as penalty:
        net(torch.randn(64, 4).cuda())
        backward(penalty.penalty())
    assert bool((gradient(net.module) != 0).any())


# Which blocks


def test_the_longest_list_of_one_class_is_found() -> None:
    assert find_blocks(Net()) == ["body.0", "body.1", "body.2"]
    assert find_blocks(nn.Sequential(Block(), Block())) == ["0", "1"]
    activations = nn.Sequential(*[nn.ReLU() for _ in range(5)])
    assert find_blocks(nn.ModuleList([Net(), activations])) == ["0.body.0", "0.body.1", "0.body.2"]
    two = nn.ModuleDict(
        {"a": nn.Sequential(Block(), Block()), "b": nn.Sequential(Block(), Block())}
    )
    assert find_blocks(two) == ["a.0", "a.1"]
    with pytest.raises(BadInput, match="Linear holds no ModuleList"):
        find_blocks(nn.Linear(2, 2))


# What they refuse


@BOTH
def test_no_pass_yet(make: Callable[..., Penalty]) -> None:
    with make(Net(), weight=1.0) as penalty, pytest.raises(BadInput, match="no forward pass"):
        penalty.penalty()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["body.7"], r"no module is named 'body\.7': names are"),
        (["layers.1"], r"names are body\.1, neck\.1"),
        ([""], "no module is named ''"),
        (["body.0", "body.0"], "named twice"),
        ([], "no blocks"),
        ("body.0", "sequence of names"),
    ],
)
def test_names_that_are_none(names: Any, message: str) -> None:
    net = Net()
    with pytest.raises(BadInput, match=message):
        LaCoOT(net, names, weight=1.0)
    assert hooks(net) == 0


def test_tensors_changed_in_place(x: torch.Tensor) -> None:
    class Rash(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(torch.relu_(x))
            return found

    net = Net(Rash(), Rash())
    with LaCoOT(net, weight=1.0) as lacoot:
        net(x)
        with pytest.raises(BadInput, match=r"'body\.0' takes or gives was changed in place"):
            lacoot.penalty()


def test_blocks_without_tensors(x: torch.Tensor) -> None:
    class Mute(Block):
        def forward(self, x: torch.Tensor) -> Any:
            return ("nothing",)

    net = nn.Sequential(Mute())
    with (
        LaCoOT(net, ["0"], weight=1.0),
        pytest.raises(BadInput, match="'0' gives no tensor of numbers"),
    ):
        net(x)
