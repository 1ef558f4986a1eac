"""What statistics of all spans cost, in plain forward passes: `python -m
blockfold.tools.benchmarks.device`.

A vision transformer with random weights, of ViT-B's size where torch has CUDA and smaller on the
CPU, is surveyed in three ways over the same random images: in torch where the module lies, in its
ONNX export with products made by the graph, and with values fetched for NumPy. Each is set against
the plain model in the same runtime; the rounds take turns, and medians of their ratios are printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...calibration.graph_moments import GraphSweep
from ...calibration.runtime import Runner
from ...calibration.sources import open_data
from ...calibration.splits import split
from ...calibration.sweep import sweep
from ...passes.evidence import pairs_of
from ...passes.layout import lay_out
from ...passes.task import Task, make_task
from ...passes.torch_sweep import ModuleSweep
from .. import modules, opening, options

Job = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """Of a vision transformer; images are `side` x `side` patches of 16 x 16 pixels."""

    depth: int
    width: int
    heads: int
    side: int


VIT_B = Size(depth=12, width=768, heads=12, side=14)
SMALL = Size(depth=6, width=384, heads=6, side=14)


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, width = x.shape
        split = self.qkv(self.first(x)).view(count, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(count, length, width))
        made: torch.Tensor = self.down(functional.gelu(self.up(self.second(x))))
        return x + made


class Transformer(nn.Module):
    """Images (batch, 3, 16 side, 16 side) -> logits of 1,000 classes."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, size.width, 16, 16)
        self.place = nn.Parameter(0.02 * torch.randn(1, size.side**2, size.width))
        self.blocks = nn.ModuleList([Block(size.width, size.heads) for _ in range(size.depth)])
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        made: torch.Tensor = self.head(self.norm(x).mean(1))
        return made


def seconds(job: Job, *, cuda: bool) -> float:
    """Of one run: by events of the device, or by the clock on the wall."""
    if not cuda:
        begin = time.perf_counter()
        job()
        return time.perf_counter() - begin
    begun, ended = _event(), _event()
    torch.cuda.synchronize()
    begun.record()
    job()
    ended.record()
    torch.cuda.synchronize()
    return float(begun.elapsed_time(ended)) / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def ratio(job: Job, plain: Job, rounds: int, *, cuda: bool) -> float:
    """The median over rounds of one job's time over another's, which take turns."""
    for each in (plain, job):
        each()
    found = [seconds(job, cuda=cuda) / seconds(plain, cuda=cuda) for _ in range(rounds)]
    return float(np.median(found))


def plain_torch(module: nn.Module, task: Task, samples: np.ndarray) -> Job:
    device = next(module.parameters()).device

    def job() -> None:
        with torch.no_grad():
            for batch in task.data.batches(samples, task.batch):
                module(torch.from_numpy(batch.feeds["image"]).to(device))

    return job


def plain_onnx(task: Task, samples: np.ndarray) -> Job:
    runner = Runner(task.plain, task.runtime)

    def job() -> None:
        for batch in task.data.batches(samples, task.batch):
            runner(batch.feeds)

    return job


@click.command()
@click.option("--samples", default=None, type=int, help="Images; on CUDA 2,048, else 64.")
@click.option("--rounds", default=5, help="Rounds of each comparison.")
@click.option("--batch", default=32, help="Images at a time.")
@options.running
def main(samples: int | None, rounds: int, batch: int, **running: object) -> None:
    """Time the survey's statistics against plain forward passes."""
    cuda = torch.cuda.is_available()
    size, device = (VIT_B, "cuda") if cuda else (SMALL, "cpu")
    torch.manual_seed(0)
    module = Transformer(size).to(device).eval()
    count = samples or (2048 if cuda else 64)
    pixels = np.random.default_rng(0).standard_normal((count, 3, 16 * size.side, 16 * size.side))
    data = {"image": pixels.astype(np.float32)}
    found = modules.captured(module, data, None, None)
    runtime = opening.settings_of(running).runtime()
    with open_data(data, found.onnx.inputs) as opened:
        task = make_task(found.onnx, opened, split(count), runtime, batch=batch)
        layout = lay_out(task)
        pairs, every = pairs_of(layout), np.arange(count)
        own = ModuleSweep(found.program, found.export(runtime), found.feeds, task, pairs)
        graph = GraphSweep(task.plain, runtime, pairs)
        taps = list(dict.fromkeys(value for pair in pairs for value in (pair.x, pair.y)))
        tapped = Runner(task.plain, runtime, taps)
        torch_plain, onnx_plain = plain_torch(module, task, every), plain_onnx(task, every)
        ways: Sequence[tuple[str, Job, Job]] = (
            (f"torch, {device}", lambda: own(every, lambda _done: None, None), torch_plain),
            (f"graph, {runtime.provider}", lambda: graph(opened, every, batch), onnx_plain),
            (
                f"fetched, {runtime.provider}",
                lambda: sweep(tapped, opened, every, pairs, batch),
                onnx_plain,
            ),
        )
        click.echo(
            f"{size}, {len(pairs)} pairs of {len(taps)} values, {count} images, batch {batch}\n"
        )
        click.echo("| statistics | plain passes |\n| --- | --- |")
        for name, job, plain in ways:
            click.echo(f"| {name} | {ratio(job, plain, rounds, cuda=cuda):.2f} |")


if __name__ == "__main__":
    main()
