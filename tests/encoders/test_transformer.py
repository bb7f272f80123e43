"""The shared blocks against their formulas."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from torch import nn

from mmssl.encoders.adapters.open_clip_names import from_open_clip_name, to_open_clip_name
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.transformer import Attention, Block, DropPath, QuickGELU, Transformer


def test_quick_gelu_is_its_formula() -> None:
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_slow_loop(causal: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(8, 2, causal=causal), torch.randn(2, 5, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    out = torch.zeros(2, 5, 8)
    for sample in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            for row in range(5):
                seen = range(row + 1) if causal else range(5)
                scores = torch.stack([q[sample, row, head] @ k[sample, other, head] / math.sqrt(4) for other in seen])
                for weight, other in zip(scores.softmax(0), seen, strict=True):
                    out[sample, row, head] += weight * v[sample, other, head]
    torch.testing.assert_close(attention(x), attention.out(out))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.3), torch.ones(5000, 2, 3)
    out = drop(x)
    assert torch.equal(out.amin((1, 2)), out.amax((1, 2)))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert abs(out.mean() - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_grows_with_depth() -> None:
    rates = [block.drop_path.rate for block in Transformer(8, 5, 2, drop_path=0.4)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_layer_scale_of_zero_leaves_the_stream_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    assert torch.equal(Transformer(8, 2, 2, layer_scale=0.0)(x)[0], x)
    assert not torch.allclose(Transformer(8, 2, 2)(x)[0], x)


def test_checkpointing_replays_what_was_drawn() -> None:
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        stack = Transformer(8, 3, 2, dropout=0.3, drop_path=0.5, checkpointing=checkpointing)
        torch.manual_seed(1)
        stack(torch.randn(4, 3, 8))[0].square().sum().backward()
        results.append([parameter.grad for parameter in stack.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_is_pre_norm() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, mlp_ratio=2, activation="gelu", causal=False, layer_scale=None, drop_path=0, dropout=0)
    x = torch.randn(2, 3, 8)
    y = x + block.attention(block.norm1(x))
    z = y + block.mlp.down(nn.functional.gelu(block.mlp.up(block.norm2(y))))
    torch.testing.assert_close(block(x), z)
    assert block.mlp.up.out_features == 16


def test_initial_values_are_distributed_as_open_clips() -> None:
    """Mean, spread and constancy of every tensor of the text tower, against open_clip's own."""
    torch.manual_seed(0)
    theirs = open_clip.transformer.TextTransformer(16, 500, 64, heads=4, layers=3).state_dict()
    ours = TextTransformerConfig(vocab_size=500, context_length=16, width=64, depth=3, heads=4).build().state_dict()
    assert {to_open_clip_name(name) for name in ours} == set(theirs) - {"text_projection"}
    for name, tensor in ours.items():
        other = theirs[to_open_clip_name(name)]
        assert tensor.shape == other.shape, name
        error = 6 * max(tensor.std().item(), 1e-12) / math.sqrt(tensor.numel())
        assert abs(tensor.mean() - other.mean()) < error + 1e-12, name
        assert abs(tensor.std() - other.std()) < error, name


def test_names_translate_both_ways() -> None:
    names = list(TextTransformerConfig(vocab_size=9, width=8, heads=2, depth=1, layer_scale=0.1).build().state_dict())
    assert [from_open_clip_name(to_open_clip_name(name)) for name in names] == names
    assert to_open_clip_name("blocks.11.scale2") == "transformer.resblocks.11.ls_2.gamma"
