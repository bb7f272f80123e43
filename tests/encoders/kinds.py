"""Every kind of encoder at a size for tests, with inputs for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.core.encoder import Encoder, EncoderConfig
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.timm import TimmConfig
from mmssl.encoders.adapters.transformers import HfTextConfig, HfVisionConfig
from mmssl.encoders.adapters.transformers_audio import HfAstConfig, HfClapAudioConfig
from mmssl.encoders.audio_resnet import AudioResNetConfig
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.clap_front_end import ClapFrontEndConfig
from mmssl.encoders.frame_video import FrameVideoConfig
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.series_conv import SeriesConvConfig
from mmssl.encoders.series_transformer import SeriesTransformerConfig
from mmssl.encoders.space_time import SpaceTimeConfig
from mmssl.encoders.spectrogram import KaldiConfig, MelConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.encoders.waveform_transformer import WaveformTransformerConfig

START, END, VOCABULARY, CONTEXT = 97, 98, 99, 12
TINY: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
HF_VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
HF_CLIP = {
    "model_type": "clip",
    "projection_dim": 16,
    "text_config": BERT
    | {"model_type": "clip_text_model", "eos_token_id": END, "bos_token_id": START, "pad_token_id": 0},
    "vision_config": HF_VIT | {"model_type": "clip_vision_model"},
}
HF_AST = {
    "model_type": "audio-spectrogram-transformer",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": 8,
    "frequency_stride": 8,
    "time_stride": 8,
    "max_length": 38,
    "num_mel_bins": 32,
}
HF_CLAP = {
    "model_type": "clap_audio_model",
    "window_size": 4,
    "num_mel_bins": 32,
    "spec_size": 64,
    "depths": [1, 1],
    "num_attention_heads": [2, 4],
    "hidden_size": 32,
    "patch_embeds_hidden_size": 16,
    "projection_dim": 24,
    "num_hidden_layers": 2,
    "hidden_dropout_prob": 0.0,
}
CLAP_MEL = MelConfig(rate=8000, window=256, hop=80, mels=32, log="db", floor=1e-10)
OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 2},
}

KINDS: dict[str, EncoderConfig] = {
    "vit": VisionTransformerConfig(size=32, patch_size=8, **TINY),
    "vit_mean": VisionTransformerConfig(
        size=32,
        patch_size=8,
        **TINY,
        pool="mean",
        class_token=False,
        pre_norm=False,
        activation="quick_gelu",
        layer_scale=0.5,
    ),
    "vit_fixed": VisionTransformerConfig(size=32, patch_size=8, **TINY, positions="sincos", patches="random"),
    "vit_registers": VisionTransformerConfig(size=32, patch_size=8, **TINY, registers=3),
    "vit_bands": VisionTransformerConfig(
        size=32, patch_size=8, **TINY, mean=[0.1, 0.2, 0.3, 0.4, 0.5], std=[0.2, 0.3, 0.2, 0.3, 0.2]
    ),
    "resnet_bands_mean": ResNetConfig(
        size=32, layers=(2, 1), channels=8, pool="mean", mean=[0.1, 0.2, 0.3, 0.4, 0.5], std=[0.2, 0.3, 0.2, 0.3, 0.2]
    ),
    "resnet": ResNetConfig(size=64, layers=(1, 1, 1, 1), channels=8),
    "resnet_mean": ResNetConfig(size=32, layers=(2, 1), channels=8, pool="mean"),
    "text_transformer": TextTransformerConfig(vocab_size=VOCABULARY, context_length=CONTEXT, **TINY),
    "text_transformer_mean": TextTransformerConfig(
        vocab_size=VOCABULARY, context_length=CONTEXT, **TINY, pool="mean", causal=False
    ),
    "audio_transformer": AudioTransformerConfig(
        front_end=MelConfig(rate=8000, window=256, hop=80, mels=32, mean=-8.0, std=4.0),
        seconds=0.39,
        patch_size=(8, 10),
        **TINY,
    ),
    "audio_transformer_mean": AudioTransformerConfig(
        front_end=KaldiConfig(rate=8000, mels=32, frames=36, mean=-8.0, std=4.0),
        seconds=0.39,
        patch_size=(8, 9),
        stride=(8, 9),
        **TINY,
        pool="mean",
        class_token=False,
        activation="quick_gelu",
        layer_scale=0.5,
        registers=2,
    ),
    "audio_transformer_stereo": AudioTransformerConfig(
        front_end=MelConfig(rate=8000, window=256, hop=80, mels=32, mean=-8.0, std=4.0, channel="both"),
        seconds=0.39,
        patch_size=(8, 10),
        **TINY,
    ),
    "audio_resnet": AudioResNetConfig(
        front_end=MelConfig(rate=8000, window=256, hop=80, mels=32, mean=-8.0, std=4.0),
        seconds=0.39,
        layers=(1, 1, 1),
        channels=8,
    ),
    "audio_resnet_mean": AudioResNetConfig(
        front_end=KaldiConfig(rate=8000, mels=32, mean=-8.0, std=4.0, channel="both"),
        seconds=0.39,
        layers=(2, 1),
        channels=8,
        pool="mean",
    ),
    "audio_waveform": WaveformTransformerConfig(
        rate=8000,
        seconds=0.39,
        channels=16,
        kernels=(5, 3, 13),
        strides=(5, 3, 13),
        position_kernel=4,
        position_groups=4,
        **TINY,
    ),
    "audio_waveform_layer": WaveformTransformerConfig(
        rate=8000,
        seconds=0.39,
        channels=16,
        kernels=(5, 3, 13),
        strides=(5, 3, 13),
        norm="layer",
        position_kernel=5,
        position_groups=4,
        stem_gradient=0.5,
        **TINY,
    ),
    "series_transformer": SeriesTransformerConfig(
        channels=3, rate=100, seconds=1.6, strides=[5, 2], **TINY, mean=[0.1, 0.2, 0.3], std=[1.5, 1.0, 0.5]
    ),
    "series_transformer_mean": SeriesTransformerConfig(
        channels=3,
        rate=100,
        seconds=1.6,
        strides=[5, 2],
        overlap=False,
        **TINY,
        pool="mean",
        class_token=False,
        activation="quick_gelu",
        layer_scale=0.5,
    ),
    "series_conv": SeriesConvConfig(
        channels=3, rate=100, seconds=1.6, stride=10, hidden=16, depth=3, width=32, dropout=0.0, mean=[0.1], std=[1.5]
    ),
    "video_frames": FrameVideoConfig(
        image=VisionTransformerConfig(size=32, patch_size=8, **TINY), frames=4, pool="transformer", depth=2, heads=4
    ),
    "video_frames_sinusoidal": FrameVideoConfig(
        image=TimmConfig(model="test_vit", size=32), frames=4, pool="transformer", heads=4, positions="sinusoidal"
    ),
    "video_frames_mean": FrameVideoConfig(
        image=ResNetConfig(size=32, layers=(2, 1), channels=8, pool="mean"), frames=4, tokens="patches"
    ),
    "video_space_time": SpaceTimeConfig(size=32, frames=4, patch_size=8, tubelet=2, **TINY),
    "video_space_time_joint": SpaceTimeConfig(
        size=32, frames=4, patch_size=8, tubelet=1, attention="joint", activation="quick_gelu", **TINY
    ),
    "timm_vit": TimmConfig(model="test_vit", size=32),
    "timm_resnet": TimmConfig(model="test_resnet", size=64),
    "timm_convnext": TimmConfig(model="test_convnext", size=64),
    "open_clip_image": OpenClipConfig(model="local-dir:{folder}", tower="image"),
    "open_clip_text": OpenClipConfig(model="local-dir:{folder}", tower="text"),
    "hf_ast_audio": HfAstConfig(
        config=HF_AST, front_end=KaldiConfig(rate=8000, mels=32, frames=38, mean=-8.0, std=4.0)
    ),
    "hf_clap_audio": HfClapAudioConfig(
        config=HF_CLAP, seconds=0.39, front_end=ClapFrontEndConfig(kind="clap_htsat_unfused", mel=CLAP_MEL, seconds=0.5)
    ),
    "hf_clap_audio_fused": HfClapAudioConfig(
        config=HF_CLAP | {"enable_fusion": True},
        pool="projection",
        seconds=0.39,
        front_end=ClapFrontEndConfig(kind="clap_htsat_fused", mel=CLAP_MEL, seconds=0.3),
    ),
    "hf_bert": HfTextConfig(config=BERT, pool="mean"),
    "hf_clip_text": HfTextConfig(config=HF_CLIP, pool="eos"),
    "hf_vit": HfVisionConfig(config=HF_VIT, pool="cls"),
    "hf_clip_vision": HfVisionConfig(config=HF_CLIP, pool="pooler"),
}


def config_of(name: str, folder: Path, **changes: Any) -> EncoderConfig:
    """The config of a kind; open_clip's reads its model file from `folder`."""
    config = KINDS[name]
    if isinstance(config, OpenClipConfig):
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": {}}))
        changes["model"] = f"local-dir:{folder}"
    return type(config).model_validate(config.model_dump() | changes)


def build(name: str, folder: Path, **changes: Any) -> Encoder:
    """An encoder with random weights, everywhere: zeros of the start hide mistakes."""
    torch.manual_seed(0)
    encoder: Encoder = config_of(name, folder, **changes).build()  # type: ignore[attr-defined]
    stir(encoder)
    return encoder


def stir(encoder: Encoder) -> None:
    """Add noise to every parameter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def is_text(name: str) -> bool:
    """Whether a kind reads ids."""
    return "text" in name or "bert" in name


def is_audio(name: str) -> bool:
    """Whether a kind reads waveforms."""
    return "audio" in name


def is_series(name: str) -> bool:
    """Whether a kind reads series."""
    return "series" in name


def is_video(name: str) -> bool:
    """Whether a kind reads clips."""
    return "video" in name


def channels_of(name: str) -> int:
    """Channels of the pictures that a kind reads."""
    return 5 if "bands" in name else 3


def inputs(name: str, count: int = 3, seed: int = 2) -> Tensor:
    """uint8 pictures or clips, int16 sounds, float series, or ids of texts of different lengths, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    if is_audio(name):  # 0.39 s: 16 patches, as the pictures have
        return torch.randint(-3000, 3000, (count, 2, 3120), generator=generator, dtype=torch.int16)
    if is_series(name):
        return torch.randn(count, 3, 160, generator=generator)
    if is_video(name):
        return torch.randint(0, 256, (count, 4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    if not is_text(name):
        size = 64 if ("resnet" in name and "mean" not in name) or "convnext" in name else 32
        return torch.randint(0, 256, (count, channels_of(name), size, size), generator=generator, dtype=torch.uint8)
    ids = torch.randint(1, START, (count, CONTEXT), generator=generator)
    ids[:, 0] = START
    for row in range(count):
        end = 3 + row % (CONTEXT - 4)
        ids[row, end] = END
        ids[row, end + 1 :] = 0
    return ids


def differ(a: Tensor, b: Tensor) -> bool:
    """Whether tensors differ by more than a hundredth of their size, which no rounding of any processor does."""
    return bool((a - b).abs().max() > 0.01 * b.abs().max())
