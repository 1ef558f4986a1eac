"""What the support table needs to know of a network: how to build, feed and read it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import transformers as hf
from torch import nn

Inputs = dict[str, torch.Tensor]

VOCABULARY = 64
IMAGE = {"pixel_values": {0: "batch"}}
TEXT = {
    "input_ids": {0: "batch", 1: "length"},
    "attention_mask": {0: "batch", 1: "length"},
}
SEQ2SEQ = TEXT | {"decoder_input_ids": {0: "batch", 1: "target"}}
CACHE = {
    "input_ids": {0: "batch", 1: "length"},
    "attention_mask": {0: "batch", 1: "total"},
    **{f"past.{i}.{part}": {0: "batch", 2: "past"} for i in range(3) for part in ("key", "value")},
}


@dataclass(frozen=True)
class Subject:
    """A network to try.

    `blocks` are patterns of module paths, one per stream, each matching that stream's blocks in
    order. `kept` is the submodule at the end of a block that survives a replacement, because the
    span ends in front of it (the LayerNorm of a post-norm block); `half` is the one that reads the
    value between the halves of a block: the second is tried where whole blocks are refused.
    `dynamic` names the axes whose length may change. `counts` says of a module whether it is a
    block.
    """

    name: str
    build: Callable[[], nn.Module]
    feed: Callable[[int, int], Inputs]
    dynamic: Mapping[str, Mapping[int, str]]
    blocks: tuple[str, ...]
    kept: str = ""
    half: str = ""
    sizes: tuple[tuple[int, int], ...] = ((2, 9), (1, 5), (3, 14))
    counts: Callable[[nn.Module], bool] = lambda _: True

    @property
    def key(self) -> str:
        """The name as part of a file's name."""
        return self.name.lower().replace(",", "").replace(" ", "-")

    @property
    def has_cache(self) -> bool:
        """Whether keys and values of earlier tokens are fed; they are passed by position."""
        return any(name.startswith("past.") for name in self.dynamic)

    def make(self) -> nn.Module:
        """The network with seeded random weights, in evaluation mode."""
        torch.manual_seed(0)
        module = self.build().eval()
        for parameter in module.parameters():  # fresh biases and norms are all 0 and 1
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        return module

    def inputs(self, batch: int, length: int) -> Inputs:
        torch.manual_seed(batch * 1000 + length)
        return self.feed(batch, length)

    def streams(self, module: nn.Module) -> list[list[str]]:
        """Paths of the blocks of each stream, in order."""
        found = dict(module.named_modules())
        return [
            [path for path in found if re.fullmatch(pattern, path) and self.counts(found[path])]
            for pattern in self.blocks
        ]


def text(batch: int, length: int) -> Inputs:
    """Token ids with the last row padded on the right."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, -2:] = 0
    return {"input_ids": torch.randint(3, VOCABULARY, (batch, length)), "attention_mask": mask}


def translated(batch: int, length: int) -> Inputs:
    return text(batch, length) | {
        "decoder_input_ids": torch.randint(3, VOCABULARY, (batch, length + 2))
    }


def image(batch: int, _: int) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def spectrogram(batch: int, _: int) -> Inputs:
    return {"input_features": torch.randn(batch, 16, 24)}


class WithCache(nn.Module):
    """A decoder whose keys and values of earlier tokens are plain inputs and outputs."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model = model
        self.layers = layers

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        pairs = [(past[2 * i], past[2 * i + 1]) for i in range(self.layers)]
        cache = hf.DynamicCache(pairs)
        made = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        layers = made.past_key_values.layers
        return (made.logits, *(t for layer in layers for t in (layer.keys, layer.values)))


def cached(heads: int) -> Callable[[int, int], Inputs]:
    """One new stretch of tokens after four remembered ones."""

    def feed(batch: int, length: int) -> Inputs:
        return {
            "input_ids": torch.randint(3, VOCABULARY, (batch, length)),
            "attention_mask": torch.ones(batch, length + 4, dtype=torch.long),
            **{
                f"past.{i}.{part}": torch.randn(batch, heads, 4, 16)
                for i in range(3)
                for part in ("key", "value")
            },
        }

    return feed
