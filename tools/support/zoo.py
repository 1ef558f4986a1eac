"""The networks that the support table is made of: `transformers` configurations, small and random.

Each Subject says how to build the network, what to feed it, and where ITS OWN code keeps its
blocks, which is what the analysis has to find without being told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Subject:
    """A network to try.

    `blocks` are patterns of module paths, one per stream, each matching that stream's blocks in
    order. `kept` is the submodule at the end of a block that survives a replacement, because the
    span ends in front of it (the LayerNorm of a post-norm block). `dynamic` names the axes whose
    length may change. `counts` says of a module whether it is a block.
    """

    name: str
    build: Callable[[], nn.Module]
    feed: Callable[[int, int], Inputs]
    dynamic: Mapping[str, Mapping[int, str]]
    blocks: tuple[str, ...]
    kept: str = ""
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


TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
DECODER = TOWER | {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "use_cache": False,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PATCHES = TOWER | {"image_size": 32, "patch_size": 8}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 3,
    "num_heads": 2,
    "use_cache": False,
    "decoder_start_token_id": 0,
    "attn_implementation": "eager",  # torch 2.13 cannot decompose the scaled product here
}


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


CACHE = {
    "input_ids": {0: "batch", 1: "length"},
    "attention_mask": {0: "batch", 1: "total"},
    **{f"past.{i}.{part}": {0: "batch", 2: "past"} for i in range(3) for part in ("key", "value")},
}


def _built(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    """Build the class `model` from the configuration class `config`."""

    def build() -> nn.Module:
        made: nn.Module = getattr(hf, model)(getattr(hf, config)(**settings))
        return made

    return build


def _mixtral() -> nn.Module:
    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    model: Any = _built("MixtralForCausalLM", "MixtralConfig", **DECODER | more)()
    model.set_experts_implementation("batched_mm")
    built: nn.Module = model
    return built


def _clip() -> nn.Module:
    words = TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "eos_token_id": 2}
    return hf.CLIPModel(hf.CLIPConfig(text_config=words, vision_config=PATCHES, projection_dim=24))


def _with_cache(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: WithCache(build(), 3)


BERT = TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ZOO: tuple[Subject, ...] = (
    Subject(
        "BERT",
        _built("BertModel", "BertConfig", **BERT),
        text,
        TEXT,
        (r"encoder\.layer\.\d+",),
        kept="output.LayerNorm",
    ),
    Subject(
        "RoBERTa",
        _built("RobertaModel", "RobertaConfig", **BERT, pad_token_id=1),
        text,
        TEXT,
        (r"encoder\.layer\.\d+",),
        kept="output.LayerNorm",
    ),
    Subject(
        "DistilBERT",
        _built(
            "DistilBertModel",
            "DistilBertConfig",
            vocab_size=VOCABULARY,
            dim=32,
            n_layers=3,
            n_heads=2,
            hidden_dim=48,
            max_position_embeddings=64,
        ),
        text,
        TEXT,
        (r"transformer\.layer\.\d+",),
        kept="output_layer_norm",
    ),
    Subject(
        "ModernBERT",
        _built(
            "ModernBertModel",
            "ModernBertConfig",
            **BERT | {"num_hidden_layers": 5},
            local_attention=6,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        text,
        TEXT,
        (r"layers\.\d+",),
    ),
    Subject(
        "ViT",
        _built("ViTForImageClassification", "ViTConfig", **PATCHES),
        image,
        IMAGE,
        (r"vit\.(encoder\.layer|layers)\.\d+",),
    ),
    Subject(
        "DeiT",
        _built("DeiTForImageClassification", "DeiTConfig", **PATCHES),
        image,
        IMAGE,
        (r"deit\.(encoder\.layer|layers)\.\d+",),
    ),
    Subject(
        "Swin",
        _built(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[2, 4],
            num_heads=[2, 4],
            window_size=4,
            attn_implementation="eager",
        ),
        image,
        IMAGE,
        (r"swin\.encoder\.layers\.\d+\.blocks\.\d+",),
    ),
    Subject(
        "GPT-2",
        _built("GPT2LMHeadModel", "GPT2Config", **GPT2, use_cache=False),
        text,
        TEXT,
        (r"transformer\.h\.\d+",),
    ),
    Subject(
        "Llama",
        _built("LlamaForCausalLM", "LlamaConfig", **DECODER),
        text,
        TEXT,
        (r"model\.layers\.\d+",),
    ),
    Subject(
        "Qwen3",
        _built("Qwen3ForCausalLM", "Qwen3Config", **DECODER),
        text,
        TEXT,
        (r"model\.layers\.\d+",),
    ),
    Subject(
        "Gemma",
        _built("GemmaForCausalLM", "GemmaConfig", **DECODER),
        text,
        TEXT,
        (r"model\.layers\.\d+",),
    ),
    Subject("Mixtral", _mixtral, text, TEXT, (r"model\.layers\.\d+",)),
    Subject(
        "T5 encoder",
        _built("T5EncoderModel", "T5Config", **T5),
        text,
        TEXT,
        (r"encoder\.block\.\d+",),
    ),
    Subject(
        "T5",
        _built("T5ForConditionalGeneration", "T5Config", **T5),
        translated,
        SEQ2SEQ,
        (r"encoder\.block\.\d+", r"decoder\.block\.\d+"),
    ),
    Subject(
        "Whisper encoder",
        lambda: (
            hf.WhisperModel(
                hf.WhisperConfig(
                    vocab_size=VOCABULARY,
                    d_model=32,
                    encoder_layers=3,
                    encoder_attention_heads=2,
                    encoder_ffn_dim=48,
                    decoder_layers=1,
                    decoder_attention_heads=2,
                    num_mel_bins=16,
                    max_source_positions=12,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                    decoder_start_token_id=1,
                )
            ).encoder
        ),
        spectrogram,
        {"input_features": {0: "batch"}},
        (r"layers\.\d+",),
    ),
    Subject(
        "CLIP",
        _clip,
        lambda b, n: text(b, n) | image(b, n),
        TEXT | IMAGE,
        (r"text_model\.encoder\.layers\.\d+", r"vision_model\.encoder\.layers\.\d+"),
    ),
    Subject(
        "ConvNeXt",
        _built(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[16, 24, 32],
            depths=[2, 3, 2],
            num_stages=3,
            image_size=32,
        ),
        image,
        IMAGE,
        (r"convnext\.encoder\.stages\.\d+\.layers\.\d+",),
    ),
    Subject(
        "ResNet",
        _built(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[3, 3],
            layer_type="basic",
        ),
        image,
        IMAGE,
        (r"resnet\.encoder\.stages\.\d+\.layers\.\d+",),
        kept="activation",
    ),
    Subject(
        "MobileNetV2",
        _built(
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            image_size=32,
            depth_multiplier=0.5,
        ),
        image,
        IMAGE,
        (r"mobilenet_v2\.layer\.\d+",),
        # those that change width or stride have no residual sum: a run of convolutions, no block
        counts=lambda block: bool(block.use_residual),
    ),
    Subject(
        "GPT-2, KV cache",
        _with_cache(_built("GPT2LMHeadModel", "GPT2Config", **GPT2)),
        cached(2),
        CACHE,
        (r"model\.transformer\.h\.\d+",),
    ),
    Subject(
        "Llama, KV cache",
        _with_cache(_built("LlamaForCausalLM", "LlamaConfig", **DECODER)),
        cached(1),
        CACHE,
        (r"model\.model\.layers\.\d+",),
    ),
)
