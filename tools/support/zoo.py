"""The networks of the support table: `transformers` configurations, small and random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from torch import nn

from .subject import (
    CACHE,
    IMAGE,
    SEQ2SEQ,
    TEXT,
    VOCABULARY,
    Subject,
    WithCache,
    cached,
    image,
    spectrogram,
    text,
    translated,
)

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
        "DeBERTa-v2",
        _built(
            "DebertaV2Model",
            "DebertaV2Config",
            **BERT,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
        ),
        text,
        TEXT,
        (r"encoder\.layer\.\d+",),
        kept="output.LayerNorm",
    ),
    Subject(
        "BLOOM",
        _built(
            "BloomForCausalLM",
            "BloomConfig",
            vocab_size=VOCABULARY,
            hidden_size=32,
            n_layer=3,
            n_head=2,
            use_cache=False,
        ),
        text,
        TEXT,
        (r"transformer\.h\.\d+",),
    ),
    Subject(
        "BART",
        _built(
            "BartModel",
            "BartConfig",
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=4,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            use_cache=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        translated,
        SEQ2SEQ,
        (r"encoder\.layers\.\d+", r"decoder\.layers\.\d+"),
        kept="final_layer_norm",
    ),
    Subject(
        "Mamba",
        _built(
            "MambaForCausalLM",
            "MambaConfig",
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            state_size=8,
            use_cache=False,
        ),
        lambda batch, length: {"input_ids": text(batch, length)["input_ids"]},
        {"input_ids": {0: "batch"}},
        (r"backbone\.layers\.\d+",),
        sizes=((2, 9), (1, 9), (3, 9)),
    ),
    Subject(
        "Segformer",
        _built(
            "SegformerForImageClassification",
            "SegformerConfig",
            depths=[2, 2, 2, 2],
            hidden_sizes=[8, 16, 24, 32],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
        image,
        IMAGE,
        (r"segformer\..*stages\.\d+\.blocks\.\d+",),
    ),
    Subject(
        "GPT-2, KV cache",
        _with_cache(_built("GPT2LMHeadModel", "GPT2Config", **GPT2)),
        cached(2),
        CACHE,
        (r"model\.transformer\.h\.\d+",),
        half="ln_2",
    ),
    Subject(
        "Llama, KV cache",
        _with_cache(_built("LlamaForCausalLM", "LlamaConfig", **DECODER)),
        cached(1),
        CACHE,
        (r"model\.model\.layers\.\d+",),
        half="post_attention_layernorm",
    ),
)
