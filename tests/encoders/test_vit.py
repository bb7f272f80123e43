"""The vision transformer's own options; its parity with open_clip stands in tests/interop."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from mmssl.core.positions import sincos_positions
from mmssl.data.modalities.array import ArrayConfig
from mmssl.encoders.vit import VisionTransformer, VisionTransformerConfig
from mmssl.recipe.checks import check_keys
from tests.encoders.kinds import stir


def vit(**changes: object) -> VisionTransformer:
    torch.manual_seed(0)
    settings = {"size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 4} | changes
    encoder = VisionTransformerConfig.model_validate(settings).build()
    stir(encoder)
    return encoder


def pictures(height: int = 32, width: int = 32, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 30}, "size: got 30, wanted a multiple of patch_size 8"),
        ({"heads": 5}, "width: got 32, wanted a multiple of heads 5"),
        ({"class_token": False}, "use pool: mean"),
        ({"patch_dropout": 1.0}, "less than 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        vit(**changes)


def test_other_sizes_use_resampled_positions() -> None:
    encoder = vit().eval()
    features = encoder(pictures(48, 16))
    assert features.grid == (6, 2)
    assert features.tokens is not None
    assert features.tokens.shape == (2, 12, 32)
    with pytest.raises(ValueError, match="got images of 36 x 32 pixels, wanted multiples of the patch size 8"):
        encoder(pictures(36, 32))
    # The same weights in an encoder made for that size, whose table was resampled beforehand, say the same.
    table = encoder.positional_embedding
    cells = torch.nn.functional.interpolate(
        table[1:].T.reshape(1, 32, 4, 4), size=(8, 8), mode="bicubic", antialias=True, align_corners=False
    )
    larger = vit(size=64).eval()
    state = encoder.state_dict() | {"positional_embedding": torch.cat([table[:1], cells[0].flatten(1).T])}
    larger.load_state_dict(state)
    torch.testing.assert_close(larger(pictures(64, 64)).pooled, encoder(pictures(64, 64)).pooled)


def test_mean_pooling_is_the_mean_of_the_tokens() -> None:
    features = vit(pool="mean")(pictures())
    assert features.tokens is not None
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_registers_are_attended_to_and_not_returned() -> None:
    encoder = vit(registers=3, depth=1).eval()
    assert encoder.registers is not None
    x, keep = pictures(), torch.tensor([[0, 3, 7], [1, 2, 15]])
    whole = encoder(x, hidden=1)
    assert whole.tokens.shape == (2, 16, 32)
    assert whole.hidden[0].shape == (2, 16, 32)
    assert encoder(x, keep=keep).tokens.shape == (2, 3, 32)
    torch.testing.assert_close(encoder.norm_post(whole.hidden[0]), whole.tokens)
    torch.testing.assert_close(encoder(x, pooled_only=True).pooled, whole.pooled)
    with torch.no_grad():
        encoder.registers.neg_()  # not shifted: a norm comes first
    assert not torch.allclose(encoder(x).pooled, whole.pooled)
    # Without them it is the encoder of the same other weights.
    plain = vit(depth=1).eval()
    plain.load_state_dict({name: x for name, x in encoder.state_dict().items() if name != "registers"})
    assert not torch.allclose(plain(x).tokens, whole.tokens)
    assert VisionTransformerConfig().registers == 0


def test_patch_dropout_drops_in_training_only() -> None:
    encoder = vit(patch_dropout=0.5)
    features = encoder(pictures(count=64))
    assert features.tokens is not None
    assert features.tokens.shape == (64, 8, 32)
    assert features.grid is None
    full = encoder.eval()(pictures())
    assert full.grid == (4, 4)
    torch.testing.assert_close(full.pooled, vit().eval()(pictures()).pooled)


def test_patch_dropout_draws_each_set_alike_and_in_reading_order() -> None:
    encoder = vit(patch_dropout=0.75)
    torch.manual_seed(0)
    drawn = encoder._draw_patches(torch.zeros(4000, 16, 32))
    assert drawn.shape == (4000, 4)
    assert (drawn.diff(dim=1) > 0).all()
    share = torch.bincount(drawn.flatten(), minlength=16) / 4000
    assert (share - 0.25).abs().max() < 0.04  # five standard deviations
    assert len({tuple(row.tolist()) for row in drawn[:50]}) > 40


def test_an_objective_that_keeps_tokens_overrules_patch_dropout() -> None:
    encoder = vit(patch_dropout=0.5)
    keep = torch.arange(16).expand(2, -1)
    features = encoder(pictures(), keep=keep)
    assert features.tokens is not None
    assert features.tokens.shape == (2, 16, 32)


def test_token_statistics_of_a_new_encoder_are_sane() -> None:
    """Depth does not blow the residual stream up: twelve blocks add no more than the embeddings themselves hold."""
    torch.manual_seed(0)
    encoder = VisionTransformerConfig(size=64, patch_size=8, width=96, depth=12, heads=4).build()
    hidden = encoder(pictures(64, 64), hidden=12).hidden
    assert hidden is not None
    first, last = hidden[0].pow(2).mean().sqrt(), hidden[-1].pow(2).mean().sqrt()
    assert 0.5 < first < 2
    assert last / first < 2


def test_fixed_positions_and_random_patches_are_not_trained() -> None:
    tiny = {"size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 4}
    encoder = VisionTransformerConfig(**tiny, positions="sincos", patches="random").build()
    still = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert still == {"positional_embedding", "patch_embedding.weight"}
    assert torch.equal(encoder.positional_embedding[0], torch.zeros(encoder.width)), "the class token has no place"
    assert torch.equal(encoder.positional_embedding[1:], sincos_positions((4, 4), encoder.width))
    learned = VisionTransformerConfig(**tiny).build()
    assert learned.state_dict().keys() == encoder.state_dict().keys(), "a checkpoint fits both"


def test_pictures_of_any_number_of_channels_are_normalised_in_their_units() -> None:
    """An encoder has as many channels as its mean and std have numbers; a recipe names those that differ."""
    config = VisionTransformerConfig(
        size=8, patch_size=4, width=8, depth=1, heads=1, mean=[300.0, 0.0], std=[10.0, 2.0]
    )
    x = torch.tensor([310.0, -4.0])[None, :, None, None].expand(1, 2, 8, 8)
    assert config.build().prepare(x)[0, :, 0, 0].tolist() == [1.0, -2.0]
    with pytest.raises(ValueError, match=r"wanted images .* of shape \[B, 2, H, W\]"):
        config.build()(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="wanted one number a channel each"):
        VisionTransformerConfig(mean=[0.0, 0.0], std=[1.0]).build()
    array = ArrayConfig(axes=["height", "width"], channels=1, size=8)
    with pytest.raises(
        ValueError, match=r"modalities\.depth\.channels: got 1, and encoders\.depth takes 2.*mean and std"
    ):
        check_keys({"depth": array}, {"depth": config}, {})
