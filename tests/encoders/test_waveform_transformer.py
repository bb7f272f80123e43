"""Transformers of waveforms: parity with wav2vec 2.0 of transformers, grids of the paper, gradients of convolutions, refusals."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
import transformers
from pydantic import ValidationError

from mmssl.encoders.waveform_transformer import WaveformTransformer, WaveformTransformerConfig

SMALL: dict[str, Any] = {
    "rate": 8000, "seconds": 0.1, "channels": 12, "kernels": (6, 3), "strides": (4, 2), "width": 16, "depth": 2, "heads": 2,
    "position_kernel": 4, "position_groups": 2,
}  # fmt: skip


def build(**changes: Any) -> WaveformTransformer:
    torch.manual_seed(0)
    return WaveformTransformerConfig(**(SMALL | changes)).build()


def sounds(count: int = 3, samples: int = 800) -> torch.Tensor:
    return torch.randn(count, 1, samples, generator=torch.Generator().manual_seed(0))


def test_a_token_is_20_ms_of_10_s() -> None:
    with torch.device("meta"):
        encoder = WaveformTransformer(WaveformTransformerConfig(seconds=10.0, depth=1))
    assert encoder.grid == (499,)
    assert sum(p.numel() for p in encoder.stem.parameters()) == 4_200_448  # of wav2vec 2.0 base
    assert encoder.positions.kernel_size == (128,)


def theirs(ours: WaveformTransformer, norm: Literal["group", "layer"]) -> transformers.Wav2Vec2Model:
    """Wav2Vec2Model of transformers with pre-norm blocks and the weights of ours."""
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(12, 12), conv_kernel=(6, 3),
        conv_stride=(4, 2), conv_bias=norm == "layer", num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm, do_stable_layer_norm=True, layerdrop=0.0, num_feat_extract_layers=2, hidden_dropout=0.0,
        attention_dropout=0.0, feat_proj_dropout=0.0, activation_dropout=0.0, apply_spec_augment=False,
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config).eval()
    convolutions = [part for part in ours.stem if isinstance(part, torch.nn.Conv1d)]
    norms = [part for part in ours.stem if isinstance(part, torch.nn.LayerNorm | torch.nn.GroupNorm)]
    pairs: list[tuple[torch.nn.Module, torch.nn.Module]] = []
    for number, layer in enumerate(model.feature_extractor.conv_layers):
        pairs.append((layer.conv, convolutions[number]))
        if number < len(norms):
            pairs.append((layer.layer_norm, norms[number]))
    projection, encoder = model.feature_projection, model.encoder
    pairs += [
        (projection.layer_norm, ours.norm_pre),
        (projection.projection, ours.project),
        (encoder.layer_norm, ours.norm_post),
    ]
    positions = encoder.pos_conv_embed.conv
    torch.nn.utils.parametrize.remove_parametrizations(positions, "weight")
    pairs.append((positions, ours.positions))
    for layer, block in zip(encoder.layers, ours.blocks, strict=True):
        attention, weight, bias = (
            layer.attention,
            block.attention.qkv.weight.chunk(3),
            block.attention.qkv.bias.chunk(3),
        )
        for name, w, b in zip(("q_proj", "k_proj", "v_proj"), weight, bias, strict=True):
            getattr(attention, name).load_state_dict({"weight": w, "bias": b})
        linear = [part for part in block.mlp.modules() if isinstance(part, torch.nn.Linear)]
        pairs += [
            (attention.out_proj, block.attention.out), (layer.layer_norm, block.norm1), (layer.final_layer_norm, block.norm2),
            (layer.feed_forward.intermediate_dense, linear[0]), (layer.feed_forward.output_dense, linear[1]),
        ]  # fmt: skip
    for their, our in pairs:
        their.load_state_dict(our.state_dict())
    return model


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_tokens_are_those_of_transformers(norm: Literal["group", "layer"]) -> None:
    ours = build(norm=norm).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        model = theirs(ours, norm)
        x = sounds()
        mask = torch.zeros(3, ours.grid[0], dtype=torch.bool)
        mask[:, 2:7] = True
        found = ours(x, replace=(mask, torch.full((16,), 0.3)), hidden=1)
        model.masked_spec_embed.fill_(0.3)
        model.config.apply_spec_augment = True
        normalised = (x[:, 0] - x[:, 0].mean(1, keepdim=True)) / (
            x[:, 0].var(1, keepdim=True, correction=0) + 1e-7
        ).sqrt()
        expected = model(normalised, mask_time_indices=mask)
    torch.testing.assert_close(found.tokens, expected.last_hidden_state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, expected.last_hidden_state.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.project(expected.extract_features), found.embedded, rtol=1e-4, atol=1e-4)


def test_loudness_and_the_type_of_samples_do_not_matter() -> None:
    encoder = build().eval()
    x = (1000 * sounds()).to(torch.int16)
    torch.testing.assert_close(encoder(x).pooled, encoder(x.float() / 3000).pooled, rtol=1e-4, atol=1e-4)
    stereo = torch.cat([x.float() + 50, x.float() - 50], 1)
    torch.testing.assert_close(encoder(stereo).pooled, encoder(x).pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder(torch.stack([x, x], 1)).pooled, encoder(x).pooled)
    assert encoder(torch.zeros(1, 1, 800)).pooled.isfinite().all()
    assert encoder(sounds(samples=1200)).grid == (149,)


def test_the_gradient_of_convolutions_is_smaller_and_the_features_are_the_same() -> None:
    usual, smaller = build(), build(stem_gradient=0.1)
    smaller.load_state_dict(usual.state_dict())
    found = [encoder(sounds()).pooled for encoder in (usual, smaller)]
    torch.testing.assert_close(*found)
    for pooled in found:
        pooled.square().sum().backward()
    for (name, a), (_, b) in zip(usual.named_parameters(), smaller.named_parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad, a.grad * (0.1 if name.startswith("stem") else 1.0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernels": (6, 3, 2)}, r"got kernels \[6, 3, 2\] and strides \[4, 2\], wanted as many of each"),
        ({"position_groups": 3}, "position_groups: got 3, wanted a divisor of width 16"),
        ({"seconds": 0.001}, "too short for one token"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=message):
        build(**changes)
    with pytest.raises(ValueError, match=r"got torch.float32 \[3, 800\], wanted sounds as int16"):
        build().prepare(torch.zeros(3, 800))
