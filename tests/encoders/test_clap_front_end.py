"""CLAP's input against transformers' extractor, with its chance taken out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.encoders.clap_front_end import ClapFrontEnd, ClapFrontEndConfig

RATE = 48_000


def build(kind: str = "clap_htsat_fused", **changes: Any) -> ClapFrontEnd:
    config = ClapFrontEndConfig.model_validate_json(json.dumps({"kind": kind, **changes}))
    assert ClapFrontEndConfig.model_validate_json(config.model_dump_json()) == config
    return config.build().eval()


def waves(count: int, seconds: float, seed: int = 0) -> Tensor:
    """Noise that swells, [count, 1, samples]: every chunk differs from every other."""
    samples = round(RATE * seconds)
    noise = torch.randn(count, 1, samples, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.001, 0.2, samples)


def theirs(x: Tensor, truncation: str, picks: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[bool]]:
    """transformers' [B, 4 or 1, F, T] and "is_longer", with `picks` in place of random choices."""
    from transformers import ClapFeatureExtractor

    monkeypatch.setattr(np.random, "choice", picks)
    monkeypatch.setattr(np.random, "randint", lambda low, high: (high - 1) // 2)
    extractor = ClapFeatureExtractor(frequency_min=50, frequency_max=14_000, truncation=truncation)
    made = extractor([wave[0].numpy() for wave in x], sampling_rate=RATE)
    features = torch.from_numpy(np.stack(made["input_features"])).float().transpose(2, 3)
    return features, [row[0] for row in made["is_longer"]]


def fixed() -> Any:
    """First place of the first third, middle of the second, last of the third."""
    calls = iter(range(10_000))

    def pick(places: Any) -> int:
        third = next(calls) % 3
        if third == 1:  # the middle of all places lies in the middle third
            return (2 * int(places[0]) + len(places) - 1) // 2
        return int(places[0] if third == 0 else places[-1])

    return pick


@pytest.mark.parametrize("seconds", [10.03, 13.0, 27.5])
def test_long_sounds_are_fused_as_transformers_does_it(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = waves(2, seconds)
    front_end = build()
    wanted, longer = theirs(x, "fusion", fixed(), monkeypatch)
    made = front_end(x)
    assert made.shape == (2, 4, 64, 1001)
    assert longer == [True, True]
    assert front_end.is_longer(x.shape[2])
    torch.testing.assert_close(made[:, [0, 1, 3]], wanted[:, [0, 1, 3]], atol=2e-3, rtol=1e-4)
    # Where thirds are unequal their middle is not the middle of all: the chunk is then found one frame away.
    spare = x.shape[2] // 480 + 1 - 1001
    mel = front_end.mel(x)[:, 0]
    torch.testing.assert_close(made[:, 2], mel[:, :, spare // 2 : spare // 2 + 1001])
    assert not torch.allclose(made[:, 1], made[:, 3], atol=0.1)


@pytest.mark.parametrize("seconds", [0.7, 3.0, 4.9, 10.0, 10.005])
def test_short_sounds_are_repeated_whole_and_given_four_times(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = waves(2, seconds)
    front_end = build()
    wanted, longer = theirs(x, "fusion", fixed(), monkeypatch)
    made = front_end(x)
    torch.testing.assert_close(made, wanted, atol=2e-3, rtol=1e-4)
    assert all(torch.equal(made[:, 0], made[:, chunk]) for chunk in (1, 2, 3))
    assert not front_end.is_longer(x.shape[2])
    assert any(longer), "transformers calls a random short sound longer: the reason why we have our own"


@pytest.mark.parametrize("seconds", [3.0, 10.0, 14.0])
def test_without_fusion_it_is_the_middle(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = waves(2, seconds)
    front_end = build("clap_htsat_unfused")
    wanted, _ = theirs(x, "rand_trunc", fixed(), monkeypatch)
    torch.testing.assert_close(front_end(x), wanted, atol=2e-3, rtol=1e-4)
    assert not front_end.is_longer(x.shape[2])


def test_filters_of_the_two_differ() -> None:
    """HTK's filters are not normalised to equal area: the same sound lies many dB higher."""
    x = waves(1, 10.0)
    assert build()(x)[:, 0].mean() - build("clap_htsat_unfused")(x).mean() > 10


def test_evaluation_has_no_chance_and_no_neighbours() -> None:
    front_end, x = build(), (waves(3, 12.0) * 32767).to(torch.int16)
    together = front_end(x)
    torch.manual_seed(1)
    assert torch.equal(front_end(x), together)
    for row in range(3):
        torch.testing.assert_close(front_end(x[row : row + 1])[0], together[row], atol=1e-4, rtol=1e-5)


MEL = {"kind": "mel", "rate": 8000, "window": 256, "hop": 80, "mels": 16, "log": "db"}


def test_augmentation_takes_a_chunk_from_each_third() -> None:
    front_end = build(mel=MEL, seconds=0.5)
    x = waves(1, 0.2).expand(64, -1, -1)  # 9,600 samples: 121 frames, 71 places for 51 of them
    mel = front_end.mel(x[:1])[0, 0]
    torch.manual_seed(0)
    made = front_end(x, augment=True)
    torch.manual_seed(0)
    assert torch.equal(front_end(x, augment=True), made)
    windows = mel.unfold(1, 51, 1)  # [F, places, T]
    assert windows.shape[1] == 71
    for third, places in enumerate((range(24), range(24, 48), range(48, 71))):
        starts = [int((windows - chunk[:, None]).abs().amax((0, 2)).argmin()) for chunk in made[:, third + 1]]
        assert set(starts) <= set(places)
        assert len(set(starts)) > 15
    assert torch.equal(made[:1, 0], front_end(x[:1])[:, 0]), "the whole is shrunk in the same way"
    barely = torch.randn(3, 1, 4080)  # 52 frames, two places: no third is empty-handed
    assert front_end(barely, augment=True).shape == (3, 4, 16, 51)


def test_another_length_and_other_filters() -> None:
    front_end = build(mel=MEL, seconds=0.5)
    assert front_end(torch.zeros(2, 2, 4000)).shape == (2, 4, 16, 51)
    assert not front_end.is_longer(4079)
    assert front_end.is_longer(4080)


def test_wrong_inputs_are_named() -> None:
    for wrong in (torch.zeros(2, 48_000), torch.zeros(2, 1, 48_000, dtype=torch.int64)):
        with pytest.raises(ValueError, match="wanted sounds"):
            build()(wrong)
    with pytest.raises(ValueError, match="too short"):
        build()(torch.zeros(2, 1, 0))
