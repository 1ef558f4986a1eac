"""Training penalties: what they add up to, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from blockfold.calibration.metrics.cka import cka_matrix, linear_cka
from blockfold.calibration.metrics.sliced_wasserstein import max_sliced_wasserstein
from blockfold.ir.errors import BadInput
from blockfold.passes.condition import CKASR, LaCoOT, Penalty
from blockfold.passes.torch_maps import linear
from blockfold.tests.penalised import (
    BATCH,
    BOTH,
    Block,
    Net,
    backward,
    stream,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(BATCH, 4)


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


def test_shrinking_the_stream_does_not_meet_a_relative_penalty(x: torch.Tensor) -> None:
    """With all weights of blocks that normalise first, and of what feeds them, made smaller."""

    class Normed(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + nn.functional.linear(nn.functional.normalize(x), self.inner.weight)

    net = Net(Normed(), Normed())
    found: dict[bool, list[float]] = {False: [], True: []}
    for scale in (1.0, 0.1):
        with torch.no_grad():
            for weight in (net.embed.weight, net.embed.bias, *net.body.parameters()):
                weight *= scale
        for relative, values in found.items():
            with LaCoOT(net, weight=1.0, relative=relative) as lacoot:
                net(x)
                torch.manual_seed(2)
                values.append(float(lacoot.penalty().detach()))
    assert found[False][1] == pytest.approx(0.1 * found[False][0], rel=1e-4)
    assert found[True][1] == pytest.approx(found[True][0], rel=1e-4)


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


# What they refuse


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
