"""SpecAugment hides what it should and nothing else, from a stream of chance that can be replayed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.spec_augment import SpecAugmentConfig, draw_bands, spec_augment
from mmssl.encoders.spectrogram import MelConfig, PresetConfig


def spectrograms(count: int = 4, planes: int = 1) -> Tensor:
    return torch.randn(count, planes, 40, 90, generator=torch.Generator().manual_seed(0)) + 3


def hidden(x: Tensor, made: Tensor) -> Tensor:
    """[B, F, T] bool; the same in all planes."""
    changed = made != x
    assert torch.equal(changed.any(1), changed.all(1))
    return changed[:, 0]


def runs(row: Tensor) -> list[int]:
    """Lengths of the stretches of True."""
    text = "".join("x" if value else " " for value in row.tolist())
    return [len(run) for run in text.split()]


def test_a_band_covers_all_frames_and_a_stretch_all_filters() -> None:
    x = spectrograms(64)
    torch.manual_seed(0)
    rows = hidden(x, spec_augment(x, SpecAugmentConfig(time_masks=0, filter_width=10)))
    assert torch.equal(rows.any(2), rows.all(2))
    assert rows.any()
    columns = hidden(x, spec_augment(x, SpecAugmentConfig(filter_masks=0, time_width=20)))
    assert torch.equal(columns.any(1), columns.all(1))
    assert columns.any()
    assert all(run <= 20 for row in rows.all(2) for run in runs(row))
    assert len({tuple(row.tolist()) for row in rows.all(2)}) > 50, "each sample has its own"


@pytest.mark.parametrize("planes", [1, 2])
def test_what_is_hidden_becomes_the_samples_mean(planes: int) -> None:
    x = spectrograms(32, planes)
    torch.manual_seed(0)
    made = spec_augment(x, SpecAugmentConfig(filter_width=10, time_width=20))
    means, where = x.mean((1, 2, 3), keepdim=True).expand_as(x), hidden(x, made)[:, None].expand_as(x)
    assert torch.equal(made[where], means[where])
    assert hidden(x, made).any((1, 2)).float().mean() > 0.9


def test_widths_and_places_are_uniform() -> None:
    torch.manual_seed(0)
    made = draw_bands(40_000, 12, 1, 5, torch.device("cpu"))
    widths = made.sum(1)
    assert torch.bincount(widths).tolist() == pytest.approx([40_000 / 6] * 6, rel=0.05)
    first = made[widths == 5].int().argmax(1)
    assert torch.bincount(first).tolist() == pytest.approx([len(first) / 8] * 8, rel=0.1)
    assert not draw_bands(100, 12, 0, 5, torch.device("cpu")).any()
    assert draw_bands(1000, 3, 4, 3, torch.device("cpu")).all(1).any(), "all may be hidden, and nothing breaks"


def test_no_stretch_is_longer_than_its_share() -> None:
    x = spectrograms(200)
    made = spec_augment(x, SpecAugmentConfig(filter_masks=0, time_masks=1, time_share=0.1))
    lengths = [sum(runs(row)) for row in hidden(x, made).all(1)]
    assert max(lengths) == 9


def test_a_draw_replays() -> None:
    x = spectrograms()
    state = torch.get_rng_state()
    one = spec_augment(x, SpecAugmentConfig())
    assert not torch.equal(spec_augment(x, SpecAugmentConfig()), one)
    torch.set_rng_state(state)
    assert torch.equal(spec_augment(x, SpecAugmentConfig()), one)


def test_a_front_end_masks_where_it_is_told_to() -> None:
    front_end, x = MelConfig(spec_augment=SpecAugmentConfig(time_width=20)).build(), torch.randn(3, 1, 16_000)
    plain = MelConfig().build()(x)
    state = torch.get_rng_state()
    assert torch.equal(front_end(x), plain)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    assert (front_end(x, augment=True) != plain).float().mean() > 0.01
    assert not front_end.state_dict()


def test_gradients_pass_what_is_left() -> None:
    x = spectrograms().requires_grad_()
    made = spec_augment(x, SpecAugmentConfig(filter_width=10, time_width=20))
    made.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad[:, 0][~hidden(x, made)] >= 1).all()
    assert (x.grad[:, 0][hidden(x, made)] < 1).all()


def encoder(**front_end: Any) -> Any:
    torch.manual_seed(0)
    values = {
        "front_end": {"kind": "ast", "frames": 98, **front_end},
        "seconds": 1.0,
        "width": 32,
        "depth": 1,
        "heads": 2,
    }
    config = AudioTransformerConfig.model_validate_json(json.dumps(values))
    assert AudioTransformerConfig.model_validate_json(config.model_dump_json()) == config
    return config.build()


def test_a_front_end_has_it_in_training_only() -> None:
    x = 0.1 * torch.randn(3, 1, 16_000, generator=torch.Generator().manual_seed(1))
    plain, augmented = encoder().eval(), encoder(spec_augment={"time_width": 30})
    state = torch.get_rng_state()
    one = augmented(x).pooled
    torch.set_rng_state(state)
    assert torch.equal(augmented(x).pooled, one), "what cached gradients rely on"
    assert not torch.equal(augmented(x).pooled, one)
    assert torch.equal(augmented.eval()(x).pooled, plain(x).pooled)


def test_presets_hand_it_on() -> None:
    policy = SpecAugmentConfig(time_width=7)
    assert PresetConfig(kind="ast", spec_augment=policy).settings.spec_augment == policy
    assert PresetConfig(kind="ast", spec_augment=policy).settings.frames == 1024
    assert MelConfig(spec_augment=policy).build().settings.spec_augment == policy
    for wrong in ('{"time_share": 0.0}', '{"filter_masks": -1}', '{"warp": 5}'):
        with pytest.raises(ValidationError):
            SpecAugmentConfig.model_validate_json(wrong)
