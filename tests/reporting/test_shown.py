"""What a page shows of a sample: frames of clips in their order, sounds that play, curves, grey pictures, all of bounded length."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mmssl.data.media.encode import encode_clip
from mmssl.data.media.sound_file import open_sound, read_samples
from mmssl.data.modalities.array import ArrayConfig
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.series import SeriesConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.reporting.shown import ShownSample, shown_sample
from tests.evaluation.world import configured

RATE = 8_000


def content(uri: str, kind: str) -> bytes:
    head, _, data = uri.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(data)


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content(uri, "image/png"))))


def heard(uri: str) -> np.ndarray:
    """[channels, samples] of a sound that was encoded anew."""
    with open_sound(content(uri, "audio/mpeg")) as file:
        assert file.samplerate == RATE
        return read_samples(file, 0, file.frames)


def sounds(channels: str = "keep") -> object:
    return configured(AudioConfig, rate=RATE, seconds=1.0, channels=channels).build("audio")


def tone(seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize(("count", "wanted"), [(8, (1, 3, 5, 7)), (2, (0, 0, 1, 1))])
def test_a_clip_is_four_frames_row_by_row(count: int, wanted: tuple[int, ...]) -> None:
    modality = configured(VideoConfig, size=8, frames=count).build("video")
    frames = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None] * 20, (count, 8, 8, 3))
    sheet = pixels(shown_sample(modality, "key", modality.from_value((frames, 4.0))).picture)
    assert sheet.shape == (20, 20, 3)
    assert [int(sheet[y, x, 0]) for y in (5, 15) for x in (5, 15)] == [20 * number for number in wanted]
    frame = configured(VideoConfig, size=8, frames=count, eval="frame").build("video")
    assert pixels(shown_sample(frame, "key", frame.from_value((frames, 4.0))).picture).shape == (8, 8, 3)


def test_a_short_sound_that_browsers_play_stays_as_it_is() -> None:
    assert shown_sample(sounds(), "key", tone(1)[None], b"RIFF", "wav") == ShownSample(
        "key", sound=f"data:audio/wav;base64,{base64.b64encode(b'RIFF').decode()}"
    )


def test_of_a_long_sound_the_middle_plays() -> None:
    wave = np.pad(tone(5), 5 * RATE)[None]
    thing = shown_sample(sounds(), "key", wave, bytes(10**6), "wav", largest=20_000)
    assert thing.note == "4.3 s of 15.0 s"
    assert len(thing.sound) <= 20_000
    sound = heard(thing.sound)
    assert sound.shape[1] / RATE == pytest.approx(4.3, abs=0.3)
    assert np.sqrt(np.square(sound[0, RATE : 3 * RATE]).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def test_the_sound_of_a_clip_plays_and_keeps_its_sides() -> None:
    wave = np.stack([tone(1), 0 * tone(1)])
    clip = encode_clip("mp4", None, wave.T.copy(), rate=RATE)
    thing = shown_sample(sounds(), "key", wave, clip, "mp4")
    assert thing.note == ""
    left, right = np.square(heard(thing.sound)).mean(1)
    assert left > 100 * right
    assert shown_sample(sounds(), "key", wave, clip, "mp4", largest=100) == ShownSample("key")


def test_a_series_is_curves_that_keep_their_peaks() -> None:
    modality = configured(SeriesConfig, axes=["channel", "time"], rate=100.0, channels=2, seconds=50.0).build("ecg")
    value = np.zeros((2, 5_000), np.float32)
    value[0, 2_001], value[1, 4_000] = 1, -1
    svg = content(shown_sample(modality, "key", value).picture, "image/svg+xml").decode()
    curves = [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall('points="([^"]*)"', svg)
    ]
    assert len(curves) == 2
    assert min(curves[0], key=lambda point: point[1]) == pytest.approx((64, 2.5), abs=1)
    assert max(curves[1], key=lambda point: point[1]) == pytest.approx((128, 97.5), abs=1)
    assert len(svg) < 12_000


def test_an_array_is_a_grey_picture_from_its_lowest_to_its_highest_number() -> None:
    modality = configured(ArrayConfig, axes=["channel", "height", "width"], channels=5, size=8).build("bands")
    ramp = np.broadcast_to(np.linspace(300, 900, 8, dtype=np.float32), (5, 8, 8)).transpose(1, 2, 0)
    grey = pixels(shown_sample(modality, "key", ramp).picture)
    assert grey.shape == (8, 8, 3)
    assert grey[3, :, 0].tolist() == [round(255 * i / 7) for i in range(8)]


def test_a_picture_shrinks_until_it_is_short_enough() -> None:
    modality = configured(ImageConfig, size=224).build("image")
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    value = modality.from_value(noise)
    whole, small = (
        shown_sample(modality, "key", value).picture,
        shown_sample(modality, "key", value, largest=20_000).picture,
    )
    assert len(small) <= 20_000 < len(whole)
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).width for uri in (whole, small)]
    assert sizes == [224, 112]
    assert shown_sample(modality, "key", value, largest=100) == ShownSample("key")


def test_sentences_are_shortened_and_labels_are_keys() -> None:
    words = configured(TextConfig, captions="lines", tokenizer={"kind": "clip"}).build("words")
    assert shown_sample(words, "key", ("a dog", "b\x00" + "x" * 2_000), item=1).text == "b\ufffd" + "x" * 997 + "…"
    assert shown_sample(configured(LabelConfig).build("label"), "key", 3) == ShownSample("key")
