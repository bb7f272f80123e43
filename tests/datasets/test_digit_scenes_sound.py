"""Key tones: the right pair of frequencies, at the right time, from the right side."""

from __future__ import annotations

import io
import wave
from dataclasses import replace

import numpy as np
import pytest

from mmssl.datasets.digit_render import KEY_TONES, Scene, render_sound, to_wav
from mmssl.datasets.digit_scenes import sample_scene

RATE = 8000
ROWS, COLUMNS = (697, 770, 852, 941), (1209, 1336, 1477)
PAD = {(697, 1209): 1, (697, 1336): 2, (697, 1477): 3, (770, 1209): 4, (770, 1336): 5, (770, 1477): 6}
PAD |= {(852, 1209): 7, (852, 1336): 8, (852, 1477): 9, (941, 1336): 0}


def heard(part: np.ndarray) -> int:
    """The key whose two frequencies are strongest in a mono sound, found without knowing how it was made."""
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), n=RATE))  # bins of 1 Hz
    low, high = (max(group, key=lambda hertz: spectrum[hertz - 3 : hertz + 4].max()) for group in (ROWS, COLUMNS))
    rest = np.ones(len(spectrum), dtype=bool)
    for hertz in (low, high):
        rest[hertz - 40 : hertz + 41] = False
    assert min(spectrum[low], spectrum[high]) > 20 * spectrum[rest].max()
    return PAD[low, high]


def test_the_pad_is_that_of_the_recommendation() -> None:
    assert {PAD[pair]: pair for pair in PAD} == dict(enumerate(KEY_TONES))


@pytest.mark.parametrize("number", range(40))
def test_each_digit_is_heard_at_its_time_from_its_side(number: int) -> None:
    scene = sample_scene("test", number)
    sound = render_sound(scene, RATE)
    assert sound.shape == (RATE, 2)
    assert sound.dtype == np.float32
    silent = np.ones(RATE, dtype=bool)
    for digit in scene.digits:
        begin, end = round(digit.begin * RATE), round(digit.end * RATE)
        silent[begin:end] = False
        part = sound[begin:end]
        assert heard(part.sum(1)) == digit.label
        left, right = np.sqrt((part.astype(float) ** 2).mean(0))
        if abs(digit.x - 0.5) > 0.01:
            assert (left > right) == (digit.x < 0.5)
        # The side can be read off the levels, and the power does not depend on it.
        assert np.arctan2(right, left) / (np.pi / 2) == pytest.approx(digit.x, abs=1e-3)
        assert np.hypot(left, right) == pytest.approx(scene.level / 2, rel=0.05)
    assert np.abs(sound[silent]).max() == 0
    assert np.abs(sound).max() <= scene.level


def test_mirroring_the_scene_swaps_the_channels() -> None:
    scene = sample_scene("train", 0)
    mirrored = replace(scene, digits=tuple(replace(digit, x=1 - digit.x) for digit in scene.digits))
    np.testing.assert_allclose(render_sound(mirrored), render_sound(scene)[:, ::-1], atol=1e-6)


def test_tones_fade_in_and_out() -> None:
    scene = sample_scene("train", 1)
    (digit,) = scene.digits
    sound = render_sound(scene, RATE)
    begin, end = round(digit.begin * RATE), round(digit.end * RATE)
    for edge in (sound[begin : begin + 4], sound[end - 4 : end]):
        assert 0 < np.abs(edge).max() < 0.01


def test_either_digit_may_sound_first() -> None:
    pairs = [scene for scene in (sample_scene("train", number) for number in range(200)) if len(scene.digits) == 2]
    first = np.mean([scene.digits[0].begin < scene.digits[1].begin for scene in pairs])
    assert 0.35 < first < 0.65


def test_wav_keeps_the_sound() -> None:
    scene: Scene = sample_scene("train", 5)
    sound = render_sound(scene)
    with wave.open(io.BytesIO(to_wav(sound))) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    np.testing.assert_allclose(pcm / 32767, sound, atol=0.51 / 32767)
