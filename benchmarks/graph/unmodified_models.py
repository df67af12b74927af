"""Architectures of ``transformers`` and of ``torch.nn`` as they are, small, from configurations alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import nn

__all__ = ["MODELS", "Build", "build"]

Build = Callable[[], tuple[nn.Module, tuple[Any, ...]]]
"""The module in eval mode, and its positional inputs."""

_VOCABULARY, _TOKENS = 61, 7
_WIDE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40
}  # fmt: skip
_TEXT: dict[str, Any] = {
    **_WIDE,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 32,
    "use_cache": False,
}
_TOKEN_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GROUPED: dict[str, Any] = {**_TEXT, **_TOKEN_IDS, "num_key_value_heads": 2}
_IMAGE: dict[str, Any] = {**_WIDE, "image_size": 16, "patch_size": 4, "num_channels": 3}


def _text(model: type[nn.Module], config: Any, **settings: Any) -> Build:
    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        ids = torch.randint(3, _VOCABULARY, (2, _TOKENS), generator=torch.Generator().manual_seed(1))
        return model(config(**settings)), (ids,)

    return made


def _image(model: type[nn.Module], config: Any, size: int = 16, **settings: Any) -> Build:
    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        return model(config(**settings)), (pixels,)

    return made


def _signal(model: type[nn.Module], config: Any, *shape: int, **settings: Any) -> Build:
    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        values = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        return model(config(**settings)), (values,)

    return made


class _EncoderOf(nn.Module):
    """The encoder alone of an encoder-decoder."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


def _sequence_to_sequence(model: type[nn.Module], config: Any, **settings: Any) -> Build:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model(config(**settings))

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids=source, decoder_input_ids=target, use_cache=False)[0]

    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        generator = torch.Generator().manual_seed(1)
        source = torch.randint(3, _VOCABULARY, (2, _TOKENS), generator=generator)
        target = torch.randint(3, _VOCABULARY, (2, _TOKENS - 2), generator=generator)
        return Both(), (source, target)

    return made


def _clip_like(model: type[nn.Module], config: Any) -> Build:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            text = {**_WIDE, "vocab_size": _VOCABULARY, "max_position_embeddings": _TOKENS, **_TOKEN_IDS}
            self.inner = model(config(text_config=text, vision_config=dict(_IMAGE), projection_dim=24))

        def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output = self.inner(input_ids=ids, pixel_values=pixels)
            return output.text_embeds, output.image_embeds, output.logits_per_image

    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, _VOCABULARY, (2, _TOKENS), generator=generator)
        return Towers(), (ids, torch.randn(2, 3, 16, 16, generator=generator))

    return made


class _TorchTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.body = nn.Transformer(32, 4, 1, 1, 40, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(source), self.embed(target)))


class _TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.embed(x))
        return self.head(self.attention(hidden, hidden, hidden, need_weights=False)[0])


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 10)
        self.body = kind(10, 16, batch_first=True, **options)
        self.head = nn.Linear(32 if options.get("bidirectional") else 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(torch.tanh(self.embed(x)))[0])


def _torch(module: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Build:
    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        generator = torch.Generator().manual_seed(1)
        return module(), tuple(torch.randn(2, *shape, generator=generator) for shape in shapes)

    return made


MODELS: dict[str, Build] = {
    # Causal.
    "GPT-2": _text(
        t.GPT2LMHeadModel, t.GPT2Config,
        vocab_size=_VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=32, use_cache=False,
        bos_token_id=1, eos_token_id=2,
    ),
    "LLaMA": _text(t.LlamaForCausalLM, t.LlamaConfig, **_GROUPED),
    "Mistral": _text(t.MistralForCausalLM, t.MistralConfig, **_GROUPED, head_dim=8),
    "Qwen 2": _text(t.Qwen2ForCausalLM, t.Qwen2Config, **_GROUPED),
    "Qwen 3": _text(t.Qwen3ForCausalLM, t.Qwen3Config, **_GROUPED, head_dim=8),
    "Gemma 2": _text(t.Gemma2ForCausalLM, t.Gemma2Config, **_GROUPED, head_dim=8),
    "Gemma 3": _text(t.Gemma3ForCausalLM, t.Gemma3TextConfig, **_GROUPED, head_dim=8),
    "Phi-3": _text(t.Phi3ForCausalLM, t.Phi3Config, **_GROUPED),
    "OPT": _text(
        t.OPTForCausalLM, t.OPTConfig,
        vocab_size=_VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
        max_position_embeddings=32, word_embed_proj_dim=32, use_cache=False, **_TOKEN_IDS,
    ),
    "GPT-NeoX": _text(t.GPTNeoXForCausalLM, t.GPTNeoXConfig, **_TEXT, **_TOKEN_IDS),
    "Falcon": _text(
        t.FalconForCausalLM, t.FalconConfig,
        vocab_size=_VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        new_decoder_architecture=False, multi_query=True, parallel_attn=True, alibi=False, use_cache=False,
        **_TOKEN_IDS,
    ),
    "BLOOM": _text(
        t.BloomForCausalLM, t.BloomConfig,
        vocab_size=_VOCABULARY, hidden_size=32, n_layer=2, n_head=4, use_cache=False, **_TOKEN_IDS,
    ),
    "Mamba": _text(
        t.MambaForCausalLM, t.MambaConfig,
        vocab_size=_VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, use_cache=False,
        **_TOKEN_IDS,
    ),
    # Masked.
    "BERT": _text(t.BertForMaskedLM, t.BertConfig, **_TEXT),
    "DistilBERT": _text(
        t.DistilBertForMaskedLM, t.DistilBertConfig,
        vocab_size=_VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=40, max_position_embeddings=32,
    ),
    "ALBERT": _text(t.AlbertForMaskedLM, t.AlbertConfig, **_TEXT, embedding_size=16, **_TOKEN_IDS),
    "RoBERTa": _text(t.RobertaForMaskedLM, t.RobertaConfig, **_TEXT, **_TOKEN_IDS),
    "ELECTRA": _text(t.ElectraForMaskedLM, t.ElectraConfig, **_TEXT, embedding_size=16),
    "DeBERTa v2": _text(
        t.DebertaV2ForMaskedLM, t.DebertaV2Config,
        **_WIDE, vocab_size=_VOCABULARY, max_position_embeddings=32, relative_attention=True,
        pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm",
    ),
    "ModernBERT": _text(
        t.ModernBertForMaskedLM, t.ModernBertConfig,
        **_WIDE, vocab_size=_VOCABULARY, max_position_embeddings=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, cls_token_id=1, sep_token_id=2,
    ),
    # Encoders and encoder-decoders.
    "T5 encoder": _text(
        t.T5EncoderModel, t.T5Config,
        vocab_size=_VOCABULARY, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, use_cache=False,
        attn_implementation="eager",  # torch's exporter views a transposed tensor in the other
    ),
    "BART": _sequence_to_sequence(
        t.BartForConditionalGeneration, t.BartConfig,
        vocab_size=_VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, max_position_embeddings=32,
        decoder_start_token_id=2, forced_eos_token_id=2, **_TOKEN_IDS,
    ),
    # Audio and series.
    "Whisper encoder": lambda: (
        _EncoderOf(
            t.WhisperModel(
                t.WhisperConfig(
                    vocab_size=_VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=1,
                    encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40,
                    decoder_ffn_dim=40, num_mel_bins=8, max_source_positions=16, max_target_positions=16,
                    decoder_start_token_id=2, **_TOKEN_IDS,
                )
            ).encoder
        ),
        (torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1)),),
    ),
    "wav2vec2": _signal(
        t.Wav2Vec2Model, t.Wav2Vec2Config, 400,
        **_WIDE, conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3),
        num_feat_extract_layers=3, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        vocab_size=_VOCABULARY, mask_time_prob=0.0,
    ),
    "PatchTST": _signal(
        t.PatchTSTForPrediction, t.PatchTSTConfig, 32, 2,
        num_input_channels=2, context_length=32, prediction_length=8, patch_length=8, patch_stride=8,
        d_model=32, num_attention_heads=4, num_hidden_layers=2, ffn_dim=40,
    ),
    # Vision.
    "ViT": _image(t.ViTForImageClassification, t.ViTConfig, **_IMAGE),
    "DeiT": _image(t.DeiTForImageClassification, t.DeiTConfig, **_IMAGE),
    "DINOv2": _image(t.Dinov2ForImageClassification, t.Dinov2Config, **_IMAGE, mlp_ratio=2),
    "BEiT": _image(t.BeitForImageClassification, t.BeitConfig, **_IMAGE),
    "Swin": _image(
        t.SwinForImageClassification, t.SwinConfig, 32,
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
        mlp_ratio=2.0, attn_implementation="eager",  # as for T5
    ),
    "ConvNeXt V2": _image(
        t.ConvNextV2ForImageClassification, t.ConvNextV2Config, 32,
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], patch_size=4, image_size=32,
    ),
    "BiT": _image(
        t.BitForImageClassification, t.BitConfig, 32,
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_groups=4,
    ),
    "ResNet": _image(
        t.ResNetForImageClassification, t.ResNetConfig, 32,
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1],
    ),
    "SegFormer": _image(
        t.SegformerForImageClassification, t.SegformerConfig, 64,
        hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 4, 4],
        sr_ratios=[8, 4, 2, 1], mlp_ratios=[2, 2, 2, 2],
    ),
    "MobileViT": _image(
        t.MobileViTForImageClassification, t.MobileViTConfig, 64,
        hidden_sizes=[24, 32, 40], neck_hidden_sizes=[8, 8, 16, 24, 24, 32, 48], num_attention_heads=4,
        image_size=64, patch_size=2,
    ),
    "LeViT": _image(
        t.LevitForImageClassification, t.LevitConfig, 64,
        image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1],
        key_dim=[8, 8, 8], mlp_ratio=[2, 2, 2], attention_ratio=[2, 2, 2],
    ),
    "CLIP": _clip_like(t.CLIPModel, t.CLIPConfig),
    "SigLIP": _clip_like(t.SiglipModel, t.SiglipConfig),
    # torch's own.
    "nn.Transformer": _torch(_TorchTransformer, (6, 12), (5, 12)),
    "nn.MultiheadAttention": _torch(_TorchAttention, (6, 12)),
    "nn.LSTM": _torch(lambda: _Recurrent(nn.LSTM, num_layers=2), (6, 12)),
    "nn.LSTM, both directions": _torch(lambda: _Recurrent(nn.LSTM, bidirectional=True), (6, 12)),
    "nn.GRU": _torch(lambda: _Recurrent(nn.GRU, num_layers=2), (6, 12)),
    "nn.RNN": _torch(lambda: _Recurrent(nn.RNN), (6, 12)),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module, seeded, with parameters and statistics that are no zeros or ones, and its inputs."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases of zeros, scales of ones and tiny layer scales would hide a mistake, and so would
            # convolutions behind which nothing is left of the input.
            size = parameter[0].numel() ** -0.5 if parameter.ndim > 2 else 0.1
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight.mean() < 0.5:
                module.weight.add_(1.0)  # MobileViT begins with scales of 0
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval(), inputs
