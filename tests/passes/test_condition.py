"""Training penalties: what they add up to, where their hooks hold, and what they refuse."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from blockfold.calibration.metrics.cka import cka_matrix, linear_cka
from blockfold.calibration.metrics.sliced_wasserstein import max_sliced_wasserstein
from blockfold.ir.errors import BadInput
from blockfold.passes.condition import CKASR, LaCoOT, Penalty
from blockfold.passes.torch_maps import linear
from blockfold.passes.torch_taps import Tap, find_blocks

WIDTH, BATCH = 6, 12


class Block(nn.Module):
    """x + scale * tanh(Wx): the identity at scale 0."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(WIDTH, WIDTH), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * torch.tanh(self.inner(x))


class Tupled(Block):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), "attention"


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.body = nn.ModuleList(blocks or [Block(), Block(0.3), Block()])
        self.neck = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.body:
            x = block(x)
        found: torch.Tensor = self.head(self.neck(x))
        return found


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(BATCH, 4)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def stream(net: Net, x: torch.Tensor) -> list[torch.Tensor]:
    """What enters the first block, and what each block gives."""
    values = [net.embed(x)]
    for block in net.body:
        values.append(block(values[-1]))
    return values


MAKERS: list[Callable[..., Penalty]] = [LaCoOT, CKASR]
BOTH = pytest.mark.parametrize("make", MAKERS, ids=["LaCoOT", "CKASR"])


def backward(loss: torch.Tensor) -> None:
    torch.autograd.backward(loss)


def gradient(net: Net) -> torch.Tensor:
    """That of the first block's weight."""
    block = net.body[0]
    assert isinstance(block, Block) and block.inner.weight.grad is not None
    return block.inner.weight.grad


# What they add up to


def test_lacoot_is_the_weighted_mean_over_blocks(x: torch.Tensor) -> None:
    net = Net()
    values = stream(net, x)
    with LaCoOT(net, weight=0.7, directions=9) as lacoot:
        net(x)
        torch.manual_seed(5)
        found = lacoot.penalty()
    torch.manual_seed(5)
    pairs = pairwise(values)
    expected = torch.stack([max_sliced_wasserstein(a, b, count=9) for a, b in pairs])
    torch.testing.assert_close(found, 0.7 * expected.mean(), rtol=1e-5, atol=1e-7)


def test_cka_sr_is_the_sum_over_ordered_pairs_of_a_stage(x: torch.Tensor) -> None:
    net = Net()
    outputs = [value[:8] for value in stream(net, x)[1:]]
    with CKASR(net, [["body.0", "body.1"], ["body.2"]], weight=0.1) as ckasr:
        net(x)
        found = ckasr.penalty()
    pair = linear_cka(outputs[0], outputs[1], unbiased=True)
    torch.testing.assert_close(found, 0.1 * (2 + 2 * pair + 1), rtol=1e-5, atol=1e-6)


def test_augmented_cka_sr_is_the_mean_over_pairs_of_all_stages(x: torch.Tensor) -> None:
    net = Net()
    stages = [["body.0", "body.1"], ["body.2"]]
    alike = cka_matrix(stream(net, x)[1:], unbiased=True)
    with CKASR(net, stages, weight=0.1, augmented=True, samples=None) as ckasr:
        net(x)
        found = ckasr.penalty()
    expected = 0.1 * 2 / (3 * 2) * (alike[0, 1] + alike[0, 2] + alike[1, 2])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_cka_sr_may_look_at_every_fifth_pass(x: torch.Tensor) -> None:
    net = Net()
    with CKASR(net, weight=1.0, every=5) as ckasr:
        seen = []
        for _ in range(11):
            net(x)
            seen.append(float(ckasr.penalty().detach()) > 0)
    assert [place for place, was in enumerate(seen) if was] == [0, 5, 10]


def test_identity_blocks_are_at_no_distance_and_go_first(x: torch.Tensor) -> None:
    net = Net(Block(1.0), Block(0.0), Block(0.1))
    with LaCoOT(net, weight=1.0) as lacoot:
        net(x)
        assert lacoot.distances()["body.1"] == 0.0
        assert lacoot.order() == ["body.1", "body.2", "body.0"]
        backward(lacoot.penalty())
    gradients = [p.grad for p in net.body.parameters() if p.grad is not None]
    assert gradients and all(bool(torch.isfinite(g).all()) for g in gradients)


def test_training_with_lacoot_pulls_and_with_cka_sr_pushes(x: torch.Tensor) -> None:
    def train(make: Callable[[Net], Penalty]) -> tuple[float, float]:
        torch.manual_seed(1)
        net = Net()
        for _, parameter in net.embed.named_parameters():
            parameter.requires_grad_(False)
        optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
        with make(net) as penalty:
            for _ in range(60):
                optimiser.zero_grad()
                loss = net(x).square().mean() * 0
                loss = loss + penalty.penalty()
                backward(loss)
                optimiser.step()
        values = [value.detach() for value in stream(net, x)]
        moved = max_sliced_wasserstein(values[0], values[-1], count=200)
        return float(moved), float(cka_matrix(values[1:], unbiased=True).mean())

    torch.manual_seed(1)
    start = [value.detach() for value in stream(Net(), x)]
    moved = float(max_sliced_wasserstein(start[0], start[-1], count=200))
    alike = float(cka_matrix(start[1:], unbiased=True).mean())
    assert train(lambda net: LaCoOT(net, weight=1.0))[0] < 0.4 * moved
    assert train(lambda net: CKASR(net, weight=1.0, samples=None))[1] < alike - 0.1


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


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
@BOTH
def test_weights_that_are_none(make: Callable[..., Penalty], weight: float) -> None:
    with pytest.raises(BadInput, match="weight of"):
        make(Net(), weight=weight)


def test_options_that_are_none() -> None:
    net = Net()
    with pytest.raises(BadInput, match="0 directions"):
        LaCoOT(net, weight=1.0, directions=0)
    with pytest.raises(BadInput, match="3 samples"):
        CKASR(net, weight=1.0, samples=3)
    with pytest.raises(BadInput, match="every 0 batches"):
        CKASR(net, weight=1.0, every=0)
    with pytest.raises(BadInput, match="sequences of names"):
        CKASR(net, ["body.0", "body.1"], weight=1.0)
    with pytest.raises(BadInput, match="1 layers have no pairs"):
        CKASR(net, [["body.0"]], weight=1.0, augmented=True)


def test_shapes_that_change(x: torch.Tensor) -> None:
    net = Net()
    with LaCoOT(net, ["body.0", "head"], weight=1.0) as lacoot:
        net(x)
        with pytest.raises(BadInput, match=r"block 'head' takes \(12, 6\) and gives \(12, 2\)"):
            lacoot.penalty()


def test_batches_too_small_for_unbiased_cka(x: torch.Tensor) -> None:
    net = Net()
    with CKASR(net, weight=1.0) as ckasr:
        net(x[:3])
        with pytest.raises(BadInput, match="unbiased CKA of 3 samples"):
            ckasr.penalty()


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


# What removal saves


class Transformer(nn.Module):
    """A block of ViT-S: 12 d^2 + 13 d parameters."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])
        self.mixing = nn.ModuleList([nn.Linear(d, 3 * d), nn.Linear(d, d)])
        self.mlp = nn.ModuleList([nn.Linear(d, 4 * d), nn.Linear(4 * d, d)])


@pytest.mark.parametrize(("removed", "millions"), [(1, 20.19), (2, 18.42), (3, 16.64), (4, 14.87)])
def test_one_map_per_span_leaves_the_parameters_that_rba_should_count(
    removed: int, millions: float
) -> None:
    d = 384
    with torch.device("meta"):
        block = Transformer(d)
        t = linear(torch.empty(d, d, device="cpu").numpy(), None, torch.empty(0, device="meta"))
    size = sum(p.numel() for p in block.parameters())
    assert size == 12 * d**2 + 13 * d
    patches, tokens, norm, pooler, head = 769 * d, 198 * d, 2 * d, d**2 + d, 10 * d + 10
    whole = patches + tokens + 12 * size + norm + pooler + head
    left = whole - removed * size + sum(p.numel() for p in t.parameters())
    assert [round(count / 1e6, 2) for count in (whole, left)] == [21.82, millions]


def test_a_block_of_lone_numbers_is_refused(x: torch.Tensor) -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1)

    net = nn.Sequential(Sum(), nn.Identity())
    with LaCoOT(net, ["1"], weight=1.0) as lacoot:
        net(x)
        with pytest.raises(BadInput, match=r"block '1' takes .*\(12,\): a batch of samples"):
            lacoot.penalty()
