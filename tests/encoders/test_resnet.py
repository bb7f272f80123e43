"""The residual network's own options; its parity with open_clip stands in tests/interop."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mmssl.encoders.resnet import AttentionPool, ResNet, ResNetConfig
from tests.encoders.kinds import stir


def resnet(**changes: object) -> ResNet:
    torch.manual_seed(0)
    encoder = ResNetConfig.model_validate({"size": 32, "layers": (1, 1), "channels": 8} | changes).build()
    stir(encoder)
    return encoder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 30}, "size: got 30, wanted a multiple of the stride 8 of 2 stages"),
        ({"layers": (1, 0)}, "wanted at least one block in every stage"),
        ({"layers": ()}, "at least 1"),
        ({"pool": "mean", "heads": 2}, "leave both out"),
        ({"pool": "mean", "output_dim": 5}, "leave both out"),
        ({"heads": 7}, "heads: got 7, wanted a divisor of the 64 channels"),
        ({"channels": 7}, "multiple of 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        resnet(**changes)


def test_width_follows_from_the_settings() -> None:
    assert ResNetConfig().feature_dim == 2048
    assert resnet().width == 32
    assert resnet(output_dim=5).width == 5
    assert resnet(pool="mean").width == 64
    assert resnet().grid == (4, 4)


def test_other_sizes_use_resampled_positions() -> None:
    encoder = resnet().eval()
    features = encoder(torch.rand(1, 3, 16, 48))
    assert features.grid == (2, 6)
    assert features.tokens is not None
    assert features.tokens.shape == (1, 12, 32)
    with pytest.raises(ValueError, match="got images of 20 x 32 pixels, wanted multiples of the stride 8"):
        encoder(torch.rand(1, 3, 20, 32))


def test_mean_pooling_is_the_mean_of_the_tokens() -> None:
    features = resnet(pool="mean")(torch.rand(2, 3, 32, 32))
    assert features.tokens is not None
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_attention_tokens_are_what_pooling_mixes() -> None:
    """With queries and keys at zero every cell weighs the same, the mean included: pooled is the mean over all of them."""
    torch.manual_seed(0)
    pool = AttentionPool(8, 2, 5, (2, 3))
    for layer in (pool.q_proj, pool.k_proj):
        torch.nn.init.zeros_(layer.weight)
    x = torch.randn(2, 8, 2, 3)
    pooled, tokens = pool(x)
    mean = pool.c_proj(pool.v_proj(x.mean((2, 3)) + pool.positional_embedding[0]))
    torch.testing.assert_close(pooled, (tokens.sum(1) + mean) / 7)


def test_a_new_block_is_its_shortcut() -> None:
    torch.manual_seed(0)
    block = ResNetConfig(size=32, layers=(2, 1), channels=8).build().get_submodule("layer1.1").eval()
    x = torch.rand(2, 32, 4, 4)
    torch.testing.assert_close(block(x), x)
