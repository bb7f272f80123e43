"""Encoders of clips beyond the contract: order in time, other lengths, masks, and what they have in common with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mmssl.core.encoder import Encoder
from mmssl.core.errors import CheckpointError
from mmssl.encoders.frame_video import FrameVideo, FrameVideoConfig
from mmssl.encoders.positions import sinusoidal_positions
from mmssl.encoders.space_time import SpaceTime, SpaceTimeConfig
from tests.encoders.kinds import differ, stir

VIT = {"kind": "vit", "size": 32, "patch_size": 8, "width": 32, "depth": 1, "heads": 2}
BOTH = pytest.mark.parametrize("attention", ["divided", "joint"])


def frames(**changes: Any) -> FrameVideo:
    torch.manual_seed(0)
    config = FrameVideoConfig.model_validate_json(json.dumps({"image": VIT, "frames": 4} | changes))
    return config.build().eval()


def space_time(**changes: Any) -> SpaceTime:
    torch.manual_seed(0)
    values = {"size": 32, "frames": 4, "patch_size": 8, "tubelet": 2, "width": 32, "depth": 2, "heads": 4}
    encoder = SpaceTimeConfig.model_validate_json(json.dumps(values | changes)).build().eval()
    stir(encoder)
    return encoder


def clips(count: int = 2, length: int = 4, size: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, length, 3, size, size), generator=generator, dtype=torch.uint8)


EVERY: dict[str, Any] = {
    "mean": lambda: frames(),
    "patches": lambda: frames(tokens="patches"),
    "learned": lambda: frames(pool="transformer", heads=4),
    "sinusoidal": lambda: frames(pool="transformer", heads=4, positions="sinusoidal"),
    "normed": lambda: frames(pool="transformer", heads=4, positions="sinusoidal", frame_norm="batch"),
    "divided": lambda: space_time(),
    "joint": lambda: space_time(attention="joint"),
}
ALL = pytest.mark.parametrize("name", EVERY)


@ALL
def test_a_picture_is_a_clip_of_one_frame(name: str) -> None:
    encoder: Encoder = EVERY[name]()
    picture = clips(2, 1)[:, 0]
    one, other = encoder(picture), encoder(picture[:, None])
    assert torch.equal(one.pooled, other.pooled)
    assert one.grid == other.grid
    assert one.grid is not None
    assert one.grid[0] == 1
    with pytest.raises(ValueError, match="wanted clips of shape"):
        encoder(clips()[:, :0])


@ALL
@pytest.mark.parametrize("length", [2, 3, 9])
def test_other_lengths_work(name: str, length: int) -> None:
    encoder: Encoder = EVERY[name]()
    features = encoder(clips(2, length))
    assert features.grid is not None
    assert features.grid[0] == (-(-length // 2) if name in ("divided", "joint") else length)
    assert features.tokens is not None
    assert features.tokens.shape == (2, torch.tensor(features.grid).prod(), encoder.width)


@ALL
def test_order_in_time_counts_where_it_should(name: str) -> None:
    encoder: Encoder = EVERY[name]()
    x = clips()
    same = torch.allclose(encoder(x).pooled, encoder(x.flip(1)).pooled, atol=1e-4)
    assert same == (name in ("mean", "patches"))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_normalised_frames_are_not_hidden_by_their_positions(norm: str) -> None:
    resnet = {"kind": "resnet", "size": 32, "layers": [1, 1], "channels": 8}
    usual = {"image": resnet, "pool": "transformer", "heads": 4, "positions": "sinusoidal"}
    plain, normed = frames(**usual), frames(**usual, frame_norm=norm)
    before = plain.image(clips().flatten(0, 1)).pooled
    assert before.std(0).mean() < 0.1  # a ResNet's vectors have no last norm
    normed.frame_norm.train()
    after = normed.frame_norm(before)
    axis = {"batch": 0, "layer": 1}[norm]
    spread = (before.var(axis, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(after, (before - before.mean(axis, keepdim=True)) / spread, rtol=1e-3, atol=1e-3)
    first_over_time = {id(parameter) for parameter in normed.layers()[-1 - normed.depth]}
    assert {id(parameter) for parameter in normed.frame_norm.parameters()} <= first_over_time
    grouped = [id(parameter) for group in normed.layers() for parameter in group]
    assert sorted(grouped) == sorted(map(id, normed.parameters()))


def test_the_mean_is_that_of_the_pictures() -> None:
    encoder, x = frames(tokens="patches"), clips()
    each = [encoder.image(x[:, frame]) for frame in range(4)]
    features = encoder(x)
    torch.testing.assert_close(features.pooled, torch.stack([one.pooled for one in each]).mean(0))
    torch.testing.assert_close(features.tokens, torch.cat([one.tokens for one in each], 1))
    assert features.grid == encoder.grid == (4, 4, 4)
    tokens = frames()(x).tokens
    assert tokens is not None
    torch.testing.assert_close(tokens.mean(1), features.pooled)


def test_a_frozen_picture_encoder_stays_as_it_is() -> None:
    image = {"kind": "resnet", "size": 32, "layers": [1, 1], "channels": 8, "pool": "mean", "frozen": True}
    encoder = frames(image=image, pool="transformer", heads=4).train()
    before = {name: value.clone() for name, value in encoder.image.state_dict().items()}
    encoder(clips()).pooled.square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.image.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.image.parameters())
    assert encoder.time_embedding is not None
    assert encoder.time_embedding.grad is not None
    assert encoder.time is not None
    assert encoder.time.training
    assert not encoder.image.training


def test_weights_of_the_pictures_and_of_the_whole(tmp_path: Path) -> None:
    trained = frames(pool="transformer", heads=4)
    safetensors.torch.save_file(trained.image.state_dict(), tmp_path / "image.safetensors")
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "whole.safetensors")
    torch.manual_seed(1)
    image = FrameVideoConfig.model_validate_json(
        json.dumps({"image": VIT | {"weights": str(tmp_path / "image.safetensors")}, "frames": 4})
    )
    assert torch.equal(image.build().image.positional_embedding, trained.image.positional_embedding)
    longer = frames(pool="transformer", heads=4, frames=7, weights=str(tmp_path / "whole.safetensors"))
    assert longer.time_embedding is not None
    assert longer.time_embedding.shape == (7, 32)
    same = frames(pool="transformer", heads=4, weights=str(tmp_path / "whole.safetensors"))
    assert torch.equal(same(clips()).pooled, trained(clips()).pooled)
    with pytest.raises(CheckpointError, match="was not made for this FrameVideo"):
        frames(weights=str(tmp_path / "whole.safetensors"))


def test_sinusoids_are_the_papers() -> None:
    table = sinusoidal_positions(5, 6, torch.device("cpu"))
    for place in range(5):
        for pair in range(3):
            angle = torch.tensor(place / 10_000 ** (2 * pair / 6))
            torch.testing.assert_close(table[place, 2 * pair : 2 * pair + 2], torch.stack([angle.sin(), angle.cos()]))
    assert sinusoidal_positions(2, 5, torch.device("cpu")).shape == (2, 5)


def test_tokens_stand_in_reading_order() -> None:
    """A change of the last frame's lower left patch touches that one patch embedding."""
    encoder, x = space_time(), clips(1)
    other = x.clone()
    other[:, 3, :, 24:, :8] = 255 - other[:, 3, :, 24:, :8]
    one, changed = (encoder._tubelets(encoder.prepare(clip))[0] for clip in (x, other))
    apart = (one - changed).abs().amax((0, 2)).view(2, 4, 4) > 1e-6
    assert apart.nonzero().tolist() == [[1, 3, 0]]


def test_the_last_frame_fills_its_tubelet() -> None:
    encoder, x = space_time(), clips(2, 3)
    torch.testing.assert_close(encoder(x).pooled, encoder(torch.cat([x, x[:, -1:]], 1)).pooled)


def test_divided_attention_sees_its_place_and_then_its_time() -> None:
    """After one block a token depends on the tokens of its time, and of the places of its time at all times: those are all. In the
    first half of the block it depends on its own place alone."""
    encoder = space_time(depth=1)
    block = encoder.blocks[0]
    x = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    seen: list[Tensor] = []
    block.space.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(x, 2, None)
    (slope,) = torch.autograd.grad(seen[0].unflatten(0, (1, 2)).flatten(1, 2)[0, 5].sum(), x)
    assert slope[0].abs().amax(1).nonzero().flatten().tolist() == [5, 16 + 5]
    (slope,) = torch.autograd.grad(block(x, 2, None)[0, 5].sum(), x)
    assert (slope[0].abs().amax(1) > 0).all()


@BOTH
def test_all_tokens_kept_are_all_tokens(attention: str) -> None:
    encoder, x = space_time(attention=attention), clips()
    everything = torch.arange(32).expand(2, -1)
    torch.testing.assert_close(encoder(x, keep=everything).tokens, encoder(x).tokens, atol=1e-5, rtol=1e-5)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    shuffled = encoder(x, keep=order)
    torch.testing.assert_close(shuffled.tokens, encoder(x).tokens[:, order[0]], atol=1e-5, rtol=1e-5)
    assert shuffled.grid is None


@BOTH
def test_masked_tubelets_have_no_influence(attention: str) -> None:
    encoder, x = space_time(attention=attention), clips().float() / 255
    chosen = torch.tensor([[0, 5, 17, 31], [30, 2, 3, 18]])
    mask = torch.zeros(2, 32, dtype=torch.bool).scatter(1, chosen, True)
    value = torch.randn(32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    kept, replaced = encoder(x, keep=chosen), encoder(x, replace=(mask, value))
    assert kept.tokens.shape == (2, 4, 32)
    assert replaced.grid == (2, 4, 4)

    def inverted(where: Tensor) -> Tensor:
        cells = where.view(2, 2, 1, 4, 4).repeat_interleave(2, 1).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.where(cells, 1 - x, x)

    assert torch.equal(encoder(inverted(~mask), keep=chosen).pooled, kept.pooled)
    assert differ(encoder(inverted(mask), keep=chosen).pooled, kept.pooled)
    assert torch.equal(encoder(inverted(mask), replace=(mask, value)).pooled, replaced.pooled)
    assert differ(encoder(inverted(~mask), replace=(mask, value)).pooled, replaced.pooled)
    assert differ(encoder(x, replace=(mask, value.flip(0))).pooled, replaced.pooled)
    replaced.pooled.square().sum().backward()
    assert value.grad is not None
    assert value.grad.abs().max() > 0


def test_weights_of_another_size_are_resampled_in_space_and_time(tmp_path: Path) -> None:
    small = space_time()
    safetensors.torch.save_file(small.state_dict(), tmp_path / "small.safetensors")
    torch.manual_seed(0)
    values = {"size": 48, "frames": 10, "patch_size": 8, "tubelet": 2, "width": 32, "depth": 2, "heads": 4}
    config = SpaceTimeConfig.model_validate_json(json.dumps(values | {"weights": str(tmp_path / "small.safetensors")}))
    large = config.build().eval()
    assert large.grid == (5, 6, 6)
    assert large(clips(1, 10, 48)).grid == (5, 6, 6)
    assert torch.equal(large.patch_embedding.weight, small.patch_embedding.weight)
    torch.testing.assert_close(large(clips()).pooled, small(clips()).pooled, atol=0.3, rtol=0.1)  # there and back
    with pytest.raises(ValueError, match="got frames of 20 x 20 pixels"):
        small(clips(1, 4, 20))


def test_blocks_start_as_those_of_other_transformers() -> None:
    torch.manual_seed(0)
    encoder = SpaceTimeConfig(size=32, frames=4, patch_size=8, width=256, depth=3, heads=4).build()
    block = encoder.blocks[0]
    for attention in (block.time, block.space.attention):
        assert isinstance(attention, nn.Module)
        assert attention.qkv.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
        assert attention.out.weight.std().item() == pytest.approx(256**-0.5 * 6**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (frames, {"pool": "transformer", "tokens": "patches"}, "use tokens: frames"),
        (frames, {"pool": "transformer", "heads": 5}, "heads: got 5, wanted a divisor of the image encoder's width 32"),
        (frames, {"frame_norm": "layer"}, "got frame_norm with pool: mean, wanted it with pool: transformer"),
        (frames, {"image": {"kind": "open_clip", "model": "ViT-B-32", "tower": "text"}}, "wanted tower: image"),
        (frames, {"image": {"kind": "text_transformer"}}, "does not match any of the expected tags"),
        (
            frames,
            {"image": {"kind": "timm", "model": "mobilenetv3_small_050"}, "tokens": "patches"},
            "has no tokens; use tokens: frames",
        ),
        (
            frames,
            {"frozen": True, "unlocked_layers": 1, "image": VIT | {"frozen": True, "unlocked_layers": 1}},
            "both here and in image, wanted one of them",
        ),
        (space_time, {"size": 30}, "size: got 30, wanted a multiple of patch_size"),
        (space_time, {"frames": 5}, "frames: got 5, wanted a multiple of tubelet"),
        (space_time, {"heads": 5}, "wanted a multiple of heads 5"),
    ],
)
def test_configs_that_mean_nothing(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=message):
        make(**changes)
