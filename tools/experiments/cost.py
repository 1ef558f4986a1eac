"""What does a penalty cost per step of training?

Steps of the demo's network (10 blocks, width 48, 60 images) without and with each penalty, in
turns; told is the median ratio of times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional

from ...passes.condition import CKASR, LaCoOT, Penalty
from ..demo import train
from .tables import table

ROUNDS = 15

PENALTIES: dict[str, Callable[[train.VisionTransformer], Penalty]] = {
    "LaCoOT, 50 random directions": lambda model: LaCoOT(model, weight=0.1),
    "LaCoOT, 50 directions after 10 steps of ascent": lambda m: LaCoOT(m, weight=0.1, steps=10),
    "CKA-SR, 8 samples": lambda model: CKASR(model, weight=1e-4),
    "CKA-SR, 8 samples of every 5th batch": lambda model: CKASR(model, weight=1e-4, every=5),
    "CKA-SR, the whole batch": lambda model: CKASR(model, weight=1e-4, samples=None),
}


def report(_seeds: Sequence[int]) -> Iterator[str]:
    torch.manual_seed(0)
    images, labels, _, _ = train.split()
    x, y = (torch.from_numpy(array[: train.BATCH]) for array in (images, labels))
    model = train.VisionTransformer()
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", *PENALTIES)}
    for at in range(ROUNDS + 1):
        for name, taken in seconds.items():
            with PENALTIES[name](model) if name in PENALTIES else nullcontext() as penalty:
                steps = 5 if "every 5th" in name else 1
                begin = time.perf_counter()
                for _ in range(steps):
                    loss = functional.cross_entropy(model(x), y)
                    loss = loss if penalty is None else loss + penalty.penalty()
                    model.zero_grad()
                    torch.autograd.backward(loss)
                if at > 0:  # the first round warms up
                    taken.append((time.perf_counter() - begin) / steps)
    plain = np.array(seconds["plain"])
    rows = []
    for name in PENALTIES:
        low, median, high = np.percentile(np.array(seconds[name]) / plain, (10, 50, 90))
        rows.append((name, f"{median:.2f}", f"{low:.2f} to {high:.2f}"))
    yield from table(("penalty", "time of a step, plain = 1", "10th to 90th percentile"), rows)
