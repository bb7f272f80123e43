"""Front-ends against torchaudio, transformers' feature extractors, and numbers worked out once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mmssl.encoders.spectrogram import (
    PRESETS,
    FrontEnd,
    FrontEndConfig,
    KaldiConfig,
    MelConfig,
    PresetConfig,
)
from mmssl.encoders.spectrogram_statistics import measure_statistics

KALDI = {
    "htk_compat": True,
    "sample_frequency": 16_000,
    "use_energy": False,
    "window_type": "hanning",
    "num_mel_bins": 128,
    "dither": 0.0,
    "frame_shift": 10,
}
ALL: dict[str, KaldiConfig | MelConfig | PresetConfig] = {
    "kaldi": KaldiConfig(mels=40),
    "mel": MelConfig(mels=40),
    **{name: PresetConfig(kind=name) for name in PRESETS},  # type: ignore[arg-type]
}
EVERY = pytest.mark.parametrize("name", ALL)


def waves(count: int, samples: int, seed: int = 0) -> Tensor:
    """Noise that swells, [count, 1, samples]."""
    noise = torch.randn(count, 1, samples, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.001, 0.2, samples)


def chirp(rate: int, seconds: float) -> Tensor:
    """A tone from 100 Hz upwards, [1, 1, samples], the same on every machine."""
    t = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return (0.3 * torch.sin(2 * math.pi * (100 * t + 500 * t * t))).float()[None, None]


def preset(name: str) -> FrontEnd:
    return PresetConfig(kind=name).build()  # type: ignore[arg-type]


def test_ast_is_that_of_transformers() -> None:
    from transformers import ASTFeatureExtractor

    x = torch.cat([waves(2, 160_000), torch.zeros(1, 1, 160_000)])
    extractor = ASTFeatureExtractor()
    wanted = np.stack([extractor(wave[0].numpy(), sampling_rate=16_000).input_values[0] for wave in x])
    made = preset("ast")(x)
    assert made.shape == (3, 1, 128, 1024)
    torch.testing.assert_close(made[:, 0], torch.from_numpy(wanted).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_clap_is_that_of_transformers() -> None:
    from transformers import ClapFeatureExtractor

    x = waves(2, 480_000)
    extractor = ClapFeatureExtractor(
        frequency_min=50, frequency_max=14_000, truncation="rand_trunc", padding="repeatpad"
    )
    wanted = np.stack([extractor(wave[0].numpy(), sampling_rate=48_000).input_features[0][0] for wave in x])
    made = preset("clap_htsat_unfused")(x)
    assert made.shape == (2, 1, 64, 1001)
    torch.testing.assert_close(made[:, 0], torch.from_numpy(wanted).transpose(1, 2), atol=1e-3, rtol=1e-5)


def test_every_row_of_a_batch_is_its_own_and_not_the_first() -> None:
    """torchaudio's function takes a batch and hands back its first row: the reason why we have our own."""
    x = waves(3, 16_000)
    alone = torch.stack([torchaudio.compliance.kaldi.fbank(wave, **KALDI).T for wave in x])
    made = KaldiConfig().build()(x)[:, 0]
    torch.testing.assert_close(made, alone, atol=1e-5, rtol=1e-5)
    assert (made[1] - made[0]).abs().mean() > 0.1
    assert torchaudio.compliance.kaldi.fbank(x[:, 0], **KALDI).shape == made[0].T.shape  # the trap is still there


def test_mel_is_that_of_torchaudio() -> None:
    x = waves(2, 16_000)
    wanted = torchaudio.transforms.MelSpectrogram(16_000, 400, hop_length=160, n_mels=64)(x[:, 0])
    torch.testing.assert_close(MelConfig().build()(x)[:, 0], wanted.clamp(min=1e-6).log(), atol=1e-5, rtol=1e-5)
    in_db = MelConfig(log="db", floor=1e-10).build()(x)
    torch.testing.assert_close(in_db[:, 0], 10 * wanted.clamp(min=1e-10).log10(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("name", "mean", "std"), [("cav_mae", -5.081, 4.4849), ("imagebind", -4.268, 9.138)])
def test_relatives_of_ast_differ_in_numbers_only(name: str, mean: float, std: float) -> None:
    frames = PRESETS[name].frames
    x = waves(1, 32_000)
    raw = torchaudio.compliance.kaldi.fbank(x[0], **KALDI).T
    assert raw.shape == (128, 198)
    made = preset(name)(x)[0, 0]
    assert made.shape == (128, frames)
    torch.testing.assert_close(made[:, :198], (raw - mean) / std, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[:, 198:], torch.full_like(made[:, 198:], -mean / std))  # zeros before normalisation
    both = torch.cat([x, -x], dim=1)
    assert torch.equal(preset(name)(both)[0, 0], made), "these take the first channel"
    assert not torch.allclose(preset("ast")(both), preset("ast")(x)), "the mean of a channel and its inverse is silence"


GOLDEN = {  # mean, deviation and one value over a chirp of 2 s, made with transformers' extractors and torchaudio's fbank
    "ast": (0.1762, 0.6323, -1.1072),
    "cav_mae": (0.5404, 1.2884, -2.0746),
    "imagebind": (-0.9927, 0.5482, -1.1072),
    "clap_htsat_unfused": (-73.638, 31.3927, -68.4213),
    "clap_htsat_fused": (-61.2682, 35.1519, -53.5559),
}


@pytest.mark.parametrize("name", PRESETS)
def test_goldens(name: str) -> None:
    made = preset(name)(chirp(PRESETS[name].rate, 2.0))[0, 0]
    got = (made.mean().item(), made.std().item(), made[30, 100].item())
    assert got == pytest.approx(GOLDEN[name], abs=2e-3, rel=2e-4)


def test_silence_is_the_floor() -> None:
    silence = torch.zeros(1, 1, 16_000)
    assert KaldiConfig().build()(silence).unique().tolist() == pytest.approx([-15.9424], abs=1e-4)
    assert MelConfig().build()(silence).unique().tolist() == pytest.approx([math.log(1e-6)], abs=1e-4)


def test_scale_is_that_of_fractions() -> None:
    """Feeding int16 numbers as floats would shift every logarithm by 2 ln 32768 = 20.8."""
    x = (waves(1, 16_000) * 32768).round().to(torch.int16)
    front_end = KaldiConfig().build()
    assert torch.equal(front_end(x), front_end(x.float() / 32768))
    assert (front_end(x.float()) - front_end(x)).median() == pytest.approx(2 * math.log(32768), abs=0.01)


@EVERY
def test_length_is_as_announced(name: str) -> None:
    front_end = ALL[name].build()
    rate = ALL[name].settings.rate
    for samples in (rate // 10, rate // 3, rate + 17, 2 * rate, 11 * rate):
        made = front_end(waves(2, samples))
        assert made.shape == (2, 1, front_end.mels, front_end.length(samples))


@EVERY
def test_rows_do_not_mix_and_gradients_are_finite(name: str) -> None:
    front_end = ALL[name].build()
    x = torch.cat([waves(2, 24_000), torch.zeros(1, 1, 24_000)]).requires_grad_()
    made = front_end(x)
    for row in range(3):
        torch.testing.assert_close(front_end(x[row : row + 1]), made[row : row + 1], atol=1e-4, rtol=1e-5)
    made[0].sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad[0].abs().max() > 0
    assert not x.grad[1:].any()
    x.grad = None
    front_end(x)[2].sum().backward()
    assert torch.isfinite(x.grad).all(), "silence has a gradient too"


def test_the_gradient_is_right() -> None:
    front_end = MelConfig(mels=8, window=64, hop=32, rate=1_000).build()
    x = waves(1, 200)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 1e-4
    slope = torch.func.jvp(lambda wave: front_end(wave).mean(), (x,), (direction,))[1]
    steps = (front_end(x + direction).mean() - front_end(x - direction).mean()) / 2
    torch.testing.assert_close(slope, steps, rtol=2e-2, atol=1e-6)


@EVERY
def test_low_precision_around_it_changes_nothing(name: str) -> None:
    front_end, x = ALL[name].build(), waves(1, 24_000)
    with torch.autocast("cpu", torch.bfloat16):
        made = front_end(x)
    assert made.dtype == torch.float32
    assert torch.equal(made, front_end(x))
    assert not front_end.state_dict(), "filters belong to the config"


def test_measured_statistics_normalise() -> None:
    batches = [waves(2, 16_000, seed) for seed in range(3)]
    mean, std = measure_statistics(MelConfig().build(), batches)
    every = MelConfig(mean=mean, std=std).build()(torch.cat(batches))
    assert every.mean().item() == pytest.approx(0, abs=1e-4)
    assert every.std().item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="no batch of sounds"):
        measure_statistics(MelConfig().build(), [])


def test_presets_can_be_given_another_length_and_statistics() -> None:
    config = PresetConfig(kind="ast", frames=512, mean=-6.6268077, std=2 * 5.358466)  # AST's numbers for ESC-50
    raw = KaldiConfig(frames=512).build()(waves(1, 80_000))
    torch.testing.assert_close(config.build()(waves(1, 80_000)), (raw + 6.6268077) / (2 * 5.358466))


@EVERY
def test_both_channels_are_two_planes(name: str) -> None:
    given = ALL[name].model_copy(update={"channel": "both"})
    assert TypeAdapter(FrontEndConfig).validate_json(given.model_dump_json()) == given
    front_end = given.build()
    left, right = waves(2, 24_000, 1), waves(2, 24_000, 2)
    made = front_end(torch.cat([left, right], dim=1))
    assert made.shape == (2, 2, front_end.mels, front_end.length(24_000))
    single = ALL[name].build()
    torch.testing.assert_close(made, torch.cat([single(left), single(right)], dim=1), atol=1e-4, rtol=1e-5)
    assert torch.equal(front_end(torch.cat([right, left], dim=1)), made.flip(1)), "swapped channels are swapped planes"
    assert (made[:, 0] - made[:, 1]).abs().mean() > 0.01
    with pytest.raises(ValueError, match=r"got sounds of 1 channel\(s\).*`channels: stereo` in the modality"):
        front_end(left)


@EVERY
def test_a_level_difference_changes_its_sign_with_the_side(name: str) -> None:
    front_end = ALL[name].model_copy(update={"channel": "level_difference"}).build()
    left, right = waves(2, 24_000, 1), 0.2 * waves(2, 24_000, 2)
    made, swapped = front_end(torch.cat([left, right], dim=1)), front_end(torch.cat([right, left], dim=1))
    single = ALL[name].model_copy(update={"channel": "mean"}).build()
    torch.testing.assert_close(made[:, :1], single(torch.cat([left, right], dim=1)), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(swapped[:, 0], made[:, 0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(swapped[:, 1], -made[:, 1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(made[:, 1], (single(left) - single(right))[:, 0], atol=1e-4, rtol=1e-5)
    assert made[:, 1].mean() > 0.02, "the left one is louder"
    with pytest.raises(ValueError, match=r"channel: level_difference"):
        front_end(left)


@EVERY
def test_wrong_inputs_are_named(name: str) -> None:
    front_end = ALL[name].build()
    for wrong in (torch.zeros(2, 16_000), torch.zeros(2, 1, 16_000, dtype=torch.int64)):
        with pytest.raises(ValueError, match="wanted sounds"):
            front_end(wrong)
    with pytest.raises(ValueError, match="too short"):
        front_end(torch.zeros(2, 1, 100))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "mel", "low": 9000.0}', "wanted low < high"),
        ('{"kind": "mel", "high": 9000.0}', "<= 8000 Hz"),
        ('{"kind": "kaldi", "std": 0.0}', "greater than 0"),
        ('{"kind": "vggish"}', "does not match any of the expected tags"),
    ],
)
def test_configs_that_mean_nothing(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(FrontEndConfig).validate_json(text)
