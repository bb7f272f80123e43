"""The masked-token decoder against the decoder of transformers, with the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from mmssl.core.positions import sincos_positions
from mmssl.heads.decoders import MaskedTokenDecoder, MaskedTokenDecoderConfig


@pytest.mark.parametrize(("grid", "width"), [((2, 3), 8), ((7, 5), 32), ((1, 1), 4)])
def test_positions_equal_transformers(grid: tuple[int, int], width: int) -> None:
    torch.testing.assert_close(
        sincos_positions(grid, width), build_2d_sinusoidal_position_embedding(*grid, width), rtol=1e-6, atol=1e-6
    )


def test_positions_of_three_axes_are_distinct_and_padded() -> None:
    positions = sincos_positions((2, 3, 4), 20)
    assert positions.shape == (24, 20)
    assert len({tuple(row.tolist()) for row in positions}) == 24
    assert (positions[:, 18:] == 0).all()
    token = (1 * 3 + 2) * 4 + 3  # place (1, 2, 3)
    expected = [math.sin(2 / 10000 ** (k / 3)) for k in range(3)]
    assert positions[token, 6:9].tolist() == pytest.approx(expected, rel=1e-6)


def test_positions_need_room() -> None:
    with pytest.raises(ValueError, match="wanted at least 6"):
        sincos_positions((2, 2, 2), 5)


def copy_weights(ours: MaskedTokenDecoder, theirs: torch.nn.Module) -> None:
    """Load the decoder of transformers into ours; strict, so that no parameter of either is forgotten."""
    state = dict(theirs.state_dict())
    positions = state.pop("decoder_pos_embed")[0]
    assert (positions[0] == 0).all()  # the class token has none
    renamed: dict[str, Tensor] = {"mask_token": state.pop("mask_token").flatten(), "positions": positions[1:]}
    for block in range(len(ours.blocks)):
        for part in ("weight", "bias"):
            old = f"decoder_layers.{block}"
            projections = [state.pop(f"{old}.attention.{x}_proj.{part}") for x in "qkv"]
            renamed[f"blocks.{block}.qkv.{part}"] = torch.cat(projections)
            renamed[f"blocks.{block}.out.{part}"] = state.pop(f"{old}.attention.o_proj.{part}")
            renamed[f"blocks.{block}.norm_attention.{part}"] = state.pop(f"{old}.layernorm_before.{part}")
            renamed[f"blocks.{block}.norm_mlp.{part}"] = state.pop(f"{old}.layernorm_after.{part}")
            renamed[f"blocks.{block}.mlp.0.{part}"] = state.pop(f"{old}.mlp.fc1.{part}")
            renamed[f"blocks.{block}.mlp.2.{part}"] = state.pop(f"{old}.mlp.fc2.{part}")
    for old, new in {"decoder_embed": "embed", "decoder_norm": "norm", "decoder_pred": "predict"}.items():
        for part in ("weight", "bias"):
            renamed[f"{new}.{part}"] = state.pop(f"{old}.{part}")
    assert not state
    ours.load_state_dict(renamed)


def reference() -> tuple[ViTMAEForPreTraining, MaskedTokenDecoder]:
    """A tiny model of transformers with random weights, and our decoder with those of its decoder; float64."""
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=4,
        decoder_hidden_size=12, decoder_num_hidden_layers=2, decoder_num_attention_heads=3,
        decoder_intermediate_size=48, layer_norm_eps=1e-5, initializer_range=0.5, norm_pix_loss=True,
    )  # fmt: skip
    theirs = ViTMAEForPreTraining(config).double().eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad and parameter.ndim == 1:
            torch.nn.init.normal_(parameter)  # biases and norms start at 0 and 1, where a swap would not be seen
    ours = MaskedTokenDecoder(8, (4, 4), 48, width=12, depth=2, heads=3).double()
    with torch.no_grad():  # this library leaves its positions at zero unless weights are loaded
        theirs.decoder.decoder_pos_embed[0, 1:] = build_2d_sinusoidal_position_embedding(4, 4, 12)
        torch.nn.init.normal_(theirs.vit.embeddings.position_embeddings)
    copy_weights(ours, theirs.decoder)
    return theirs, ours


def test_decoder_equals_transformers() -> None:
    theirs, ours = reference()
    random = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(*s, generator=random, dtype=torch.float64) for s in ((3, 3, 16, 16), (3, 16)))
    with torch.no_grad():
        encoded = theirs.vit(x, noise=noise).last_hidden_state
        expected = theirs.decoder(encoded, noise.argsort(1).argsort(1)).logits
        got = ours(encoded[:, 0], encoded[:, 1:], noise.argsort(1)[:, :4])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_order_of_the_kept_tokens_does_not_matter_but_their_places_do() -> None:
    torch.manual_seed(0)
    decoder = MaskedTokenDecoder(8, (4, 4), 5, width=12, depth=1, heads=3)
    pooled, tokens, keep = torch.randn(2, 8), torch.randn(2, 3, 8), torch.tensor([[4, 9, 1], [0, 15, 7]])
    out = decoder(pooled, tokens, keep)
    assert out.shape == (2, 16, 5)
    shuffled = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(pooled, tokens[:, shuffled], keep[:, shuffled]), out)
    assert (decoder(pooled, tokens, keep[:, shuffled]) - out).abs().max() > 1e-2
    assert (decoder(pooled + 1, tokens, keep) - out).abs().max() > 1e-3


def test_runs_under_autocast() -> None:
    decoder = MaskedTokenDecoder(8, (4, 4), 5, width=12, depth=1, heads=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = decoder(torch.randn(2, 8).bfloat16(), torch.randn(2, 3, 8).bfloat16(), torch.tensor([[4, 9, 1]] * 2))
    assert out.dtype == torch.bfloat16


def test_config_builds_and_refuses() -> None:
    decoder = MaskedTokenDecoderConfig(width=12, depth=2, heads=3).build(8, (2, 2), 7)
    assert (decoder.tokens, decoder.values, len(decoder.blocks)) == (4, 7, 2)
    with pytest.raises(ValueError, match="width: got 12, wanted a multiple of heads 5"):
        MaskedTokenDecoderConfig(width=12, heads=5)
