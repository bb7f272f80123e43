"""What a random window does to a sound: each change where it should be, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.views.audio import RandomWindowConfig, RandomWindowView, add_noise, shift_in_time

SHAPE = (2, 1000)


def build(**changes: Any) -> RandomWindowView:
    return RandomWindowConfig.model_validate_json(json.dumps(changes)).build(SHAPE, "zero")


def stereo(samples: int = 1000) -> np.ndarray:
    """Noise that is twice as loud on the left."""
    wave = 0.1 * np.random.default_rng(0).standard_normal((1, samples), dtype=np.float32)
    return np.concatenate([wave, 0.5 * wave])


def draws(view: RandomWindowView, count: int = 2000) -> list[dict[str, Any]]:
    wave = stereo()
    return [view.draw(wave, np.random.default_rng(seed)) for seed in range(count)]


EVERYTHING: dict[str, Any] = {"gain_db": [-6.0, 6.0], "noise_snr_db": [10.0, 40.0], "noise": 0.5, "shift": 0.1}


def test_without_options_it_is_a_window() -> None:
    wave = stereo(1500)
    view = build()
    parameters = view.draw(wave, np.random.default_rng(3))
    assert set(parameters) == {"start"}
    wanted = np.rint(wave[:, parameters["start"] :][:, :1000] * 32768).astype(np.int16)
    assert (view(wave, parameters).numpy() == wanted).all()


@pytest.mark.parametrize(("samples", "places"), [(1003, {0, 1, 2, 3}), (1001, {0, 1}), (1000, {0}), (400, {0})])
def test_windows_begin_at_every_place_from_which_they_are_whole(samples: int, places: set[int]) -> None:
    view, wave = build(), stereo(samples)
    assert {view.draw(wave, np.random.default_rng(seed))["start"] for seed in range(100)} == places


def test_the_place_of_the_window_does_not_depend_on_the_options() -> None:
    wave = stereo(5000)
    for seed in range(20):
        starts = {build(**options).draw(wave, np.random.default_rng(seed))["start"] for options in ({}, EVERYTHING)}
        assert len(starts) == 1


def test_draws_fill_their_ranges() -> None:
    drawn = draws(build(**EVERYTHING))
    gains = [one["gain_db"] for one in drawn]
    assert -6 <= min(gains) < -5.9
    assert 5.9 < max(gains) <= 6
    assert np.mean(gains) == pytest.approx(0, abs=0.3)
    shifts = [one["shift"] for one in drawn]
    assert set(shifts) == set(range(-100, 101))
    ratios = [one["noise"][0] for one in drawn if one["noise"] is not None]
    assert len(ratios) == pytest.approx(1000, abs=80)
    assert 10 <= min(ratios) < 10.5
    assert 39.5 < max(ratios) <= 40
    assert len({one["noise"][1] for one in drawn if one["noise"] is not None}) > 990


def test_it_replays() -> None:
    view, wave = build(**EVERYTHING), stereo(3000)
    seen = set()
    for seed in range(20):
        parameters = view.draw(wave, np.random.default_rng(seed))
        before = wave.copy()
        made = view(wave, parameters)
        assert (wave == before).all(), "the sound itself is left alone"
        assert torch.equal(made, view(wave.copy(), json.loads(json.dumps(parameters))))
        assert made.shape == SHAPE
        assert made.dtype == torch.int16
        seen.add(made.numpy().tobytes())
    assert len(seen) == 20


def test_gain_is_the_same_on_both_sides() -> None:
    view, wave = build(gain_db=[-20.0, 6.0]), stereo()
    for gain in (-20.0, -6.0, 6.0):
        made = view(wave, {"start": 0, "gain_db": gain}).numpy() / 32768
        assert np.abs(made - wave * 10 ** (gain / 20)).max() <= 0.51 / 32768
    loud = view(np.full((1, 1000), 0.9, dtype=np.float32), {"start": 0, "gain_db": 6.0})
    assert (loud == 32767).all(), "clipped, and not wrapped"


@pytest.mark.parametrize("samples", [1, 300, -300, 999])
def test_a_shift_moves_time_and_not_channels(samples: int) -> None:
    wave = stereo()
    rolled, silent = shift_in_time(wave, samples, "roll"), shift_in_time(wave, samples, "silence")
    for time in range(1000):
        assert (rolled[:, (time + samples) % 1000] == wave[:, time]).all()
    inside = np.zeros(1000, dtype=bool)
    inside[max(0, samples) : 1000 + min(0, samples)] = True
    assert (silent[:, inside] == rolled[:, inside]).all()
    assert not silent[:, ~inside].any()
    assert not np.array_equal(rolled, wave), "a roll along the wrong axis would change nothing, or swap the channels"
    view = build(shift=0.3, shift_fill="silence")
    assert torch.equal(view(wave, {"start": 0, "shift": samples}), build()(silent, {"start": 0}))


@pytest.mark.parametrize("ratio", [0.0, 20.0])
def test_noise_has_the_ratio_that_was_drawn(ratio: float) -> None:
    wave = stereo(200_000)
    noise = add_noise(wave, ratio, 5) - wave
    measured = 10 * np.log10((wave**2).mean() / (noise**2).mean(axis=1))
    assert measured == pytest.approx([ratio, ratio], abs=0.1), "as loud on both sides"
    assert abs(np.corrcoef(noise)[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[0], wave[0])[0, 1]) < 0.01
    assert not np.array_equal(add_noise(wave, ratio, 6), add_noise(wave, ratio, 5))
    assert not add_noise(np.zeros((1, 100), dtype=np.float32), ratio, 5).any(), "silence stays silent"


def test_mono_stays_mono_in_two_channels() -> None:
    view = build(**EVERYTHING | {"noise": 1.0})
    wave = stereo()[:1]
    made = view(wave, view.draw(wave, np.random.default_rng(0)))
    assert torch.equal(made[0], made[1])


def test_evaluation_is_untouched() -> None:
    options = {"rate": 1000, "seconds": 1.0}
    plain = AudioConfig.model_validate_json(json.dumps(options)).build("audio").view("eval")
    augmented = AudioConfig.model_validate_json(
        json.dumps(options | {"views": {"crop": {"kind": "random_window", **EVERYTHING}}})
    ).build("audio")
    wave = stereo(1700)
    rng = np.random.default_rng(0)
    assert augmented.view("eval").draw(wave, rng) == {}
    assert torch.equal(augmented.view("eval")(wave, {}), plain(wave, {}))
    crop = augmented.view("crop")
    assert not torch.equal(crop(wave, crop.draw(wave, rng)), crop(wave, crop.draw(wave, rng)))


def windows(count: int, pad: str = "repeat") -> Any:
    text = json.dumps({"rate": 1000, "seconds": 0.1, "channels": "mono", "eval_windows": count, "pad": pad})
    return AudioConfig.model_validate_json(text).build("audio").view("eval")


@pytest.mark.parametrize(
    ("samples", "starts"),
    [(100, [0, 0, 0, 0]), (130, [0, 10, 20, 30]), (400, [0, 100, 200, 300]), (1000, [0, 300, 600, 900])],
)
def test_windows_go_from_the_beginning_to_the_end(samples: int, starts: list[int]) -> None:
    wave = (np.arange(samples, dtype=np.float32) / 32768)[None]
    view = windows(4)
    made = view(wave, view.draw(wave, np.random.default_rng(0)))
    assert made.shape == view.blank().shape == (4, 1, 100)
    assert made[:, 0].tolist() == [list(range(start, start + 100)) for start in starts]


def test_short_sounds_give_equal_windows() -> None:
    wave = (np.arange(30, dtype=np.float32) / 32768)[None]
    made = windows(3)(wave, {})
    assert made[0, 0].tolist() == [*range(30)] * 3 + [0] * 10
    assert all(torch.equal(made[0], made[number]) for number in (1, 2))
    assert torch.equal(windows(1)(wave, {}), made[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gain_db": [6.0, -6.0]}, r"wanted \[smallest, largest\]"),
        ({"noise": 0.5}, "without noise_snr_db, where it has no effect"),
        ({"shift": 1.5}, "less than or equal to 1"),
        ({"polarity": 0.5}, "Extra inputs"),
    ],
)
def test_configs_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**changes)
