"""Inputs from Python become what files decode to, and are checked like files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.data.modalities.audio import AudioConfig, AudioModality
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.timeline import Clip

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
WAVE = np.random.default_rng(1).uniform(-1, 1, (2, 400)).astype(np.float32)
FRAMES = np.random.default_rng(2).integers(0, 256, (5, 9, 7, 3), dtype=np.uint8)
TIMES = np.arange(5) / 10


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def image(**settings: Any) -> Modality:
    return ImageConfig(size=8, **settings).build("image")


def sound(**settings: Any) -> AudioModality:
    return AudioConfig(rate=1000, seconds=0.1, **settings).build("audio")


def video(**settings: Any) -> Modality:
    return VideoConfig(size=8, frames=2, **settings).build("video")


def text(captions: Any = "whole") -> Modality:
    return TextConfig(captions=captions).build("text")


@pytest.mark.parametrize(
    "value",
    [
        PIXELS,
        torch.from_numpy(PIXELS),
        PIXELS.astype(np.float64) / 255,
        torch.from_numpy(PIXELS).float() / 255,
        Image.fromarray(PIXELS),
        png(Image.fromarray(PIXELS)),
    ],
    ids=["array", "tensor", "floats", "tensor of floats", "PIL", "bytes"],
)
def test_pictures_of_all_kinds_are_the_same_pixels(value: Any) -> None:
    assert np.array_equal(image().from_input(value), PIXELS)


def test_half_precision_tensors_are_taken() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        made = image().from_input((torch.from_numpy(PIXELS) / 255).to(dtype))
        assert np.abs(made.astype(int) - PIXELS).max() <= 1
    assert np.array_equal(image().from_input((torch.from_numpy(PIXELS) / 255).requires_grad_()), PIXELS)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_pil_pictures_have_their_modes_handled_as_files_have(mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.random.default_rng(3).integers(0, 65536, (9, 7), dtype=np.uint16))
    else:
        picture = Image.fromarray(np.dstack([PIXELS, PIXELS[..., :1]]), "RGBA").convert(
            "RGB" if mode == "P" else "RGBA"
        )
        picture = picture.convert(mode)
    assert picture.mode == mode
    drop = image(alpha="drop")
    assert np.array_equal(drop.from_input(picture), drop.decode(png(picture), "png"))


def test_grey_arrays_are_grey_pictures() -> None:
    grey = PIXELS[..., 0]
    for value in (grey, grey[..., None], torch.from_numpy(grey / 255)):
        assert np.array_equal(image().from_input(value), np.repeat(grey[..., None], 3, axis=2))


def test_files_are_read_by_path(tmp_path: Path) -> None:
    (tmp_path / "a.picture").write_bytes(png(Image.fromarray(PIXELS)))
    for path in (tmp_path / "a.picture", str(tmp_path / "a.picture")):
        assert np.array_equal(image().from_input(path), PIXELS)
    with pytest.raises(FileNotFoundError):
        image().from_input(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (PIXELS.transpose(2, 0, 1), r"shape: got shape \[3, 9, 7\], wanted .*\[H, W, 3\].*; permute\(1, 2, 0\) makes"),
        (PIXELS.transpose(2, 0, 1)[:1], r"shape: got shape \[1, 9, 7\], wanted .*; permute\(1, 2, 0\)"),
        (
            PIXELS[None],
            r"shape: got shape \[1, 9, 7, 3\], wanted .*; give a batch as a list of pictures: list\(batch\)",
        ),
        (PIXELS[..., [0, 1, 2, 0]], r"shape: got shape \[9, 7, 4\], wanted .*; of RGBA give \[\.\.\., :3\]"),
        (PIXELS[..., :2], r"shape: got shape \[9, 7, 2\], wanted .*uint8, or floats in \[0, 1\]$"),
        (PIXELS[0, 0], r"shape: got shape \[3\], wanted"),
        (PIXELS.astype(np.float32), r"range: got floats \[9, 7, 3\] from 0 to 2\d\d, wanted \[0, 1\]: divide by 255"),
        (
            PIXELS / 255 - 0.5,
            r"range: got floats \[9, 7, 3\] from -0\.5 to 0\.47\d*, wanted \[0, 1\].*do not normalise",
        ),
        (np.where(PIXELS < 9, np.nan, PIXELS / 255), "not_finite: .* values are NaN or infinite, wanted a path"),
        (np.zeros((0, 7, 3), np.uint8), r"empty: got shape \[0, 7, 3\]"),
        (PIXELS.astype(np.int64), r"type: got int64 \[9, 7, 3\], wanted .*uint8"),
        (PIXELS.astype(np.uint16) * 257, r"type: got uint16 \[9, 7, 3\], wanted .*uint8"),
        (torch.from_numpy(PIXELS).bool(), r"type: got bool \[9, 7, 3\], wanted"),
        (np.zeros((100, 100, 3), np.uint8), r"too_large: got 100 x 100 pixels, wanted at most 9000"),
        (Image.new("RGB", (100, 100)), r"too_large: got 100 x 100 pixels, wanted at most 9000"),
        (Image.new("F", (9, 9), 1.5), "range: got a picture of float32 values from 1.5 to 1.5, wanted 0 to 1"),
        (7, "type: got builtins.int, wanted a path, bytes, a PIL picture"),
    ],
)
def test_pictures_that_are_refused(value: Any, sentence: str) -> None:
    with pytest.raises(DecodeError, match=sentence):
        image(max_pixels=9000).from_input(value)


def test_sounds_of_all_kinds_are_the_same_wave() -> None:
    whole = np.rint(WAVE * 32000).astype(np.int16)
    wanted = whole.astype(np.float32) / 32768
    for value in (wanted, torch.from_numpy(wanted), wanted.astype(np.float64), whole, torch.from_numpy(whole)):
        made = sound().from_input(value)
        assert made.dtype == np.float32
        assert np.array_equal(made, wanted)
    assert np.array_equal(sound().from_input(wanted[0]), wanted[:1])
    assert np.array_equal(sound(channels="stereo").from_input(wanted[0]), wanted[[0, 0]])
    assert np.array_equal(sound(channels="mono").from_input(wanted), wanted.mean(0, keepdims=True))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (WAVE.T, r"shape: got shape \[400, 2\], wanted .*\[channels, samples\].*; transpose soundfile's"),
        (WAVE[None], r"shape: got shape \[1, 2, 400\], wanted"),
        (np.concatenate([WAVE, WAVE]), "channels: got 4 channels, wanted one or two"),
        (WAVE * np.inf, "not_finite: 800 of 800 values"),
        (np.zeros((1, 0), np.float32), r"empty: got shape \[1, 0\]"),
        (WAVE.astype(np.int32), "type: got int32, wanted .*int16"),
        (np.zeros((2, 501), np.float32), "too_large: got 1002 samples, wanted at most 1000"),
        ([0.0, 0.1], "type: got builtins.list, wanted a path, bytes, an array"),
        (WAVE * 20000, r"range: got samples up to \d+\.?\d*, wanted floats in \[-1, 1\] .*: divide by 32768"),
        (np.where(WAVE[0, 9] == WAVE, -8.01, WAVE), r"range: got samples up to 8\.01, wanted floats"),
        ((WAVE, 0), "no_rate: got the rate 0, wanted a whole number from 1000 to 192000 Hz"),
        ((WAVE, "16 kHz"), "no_rate: got the rate '16 kHz', wanted"),
        ((WAVE, 1000.5), "no_rate: got the rate 1000.5, wanted"),
        ((WAVE.T, 8000), "shape: got shape"),
        ((WAVE[:, :130], 250_000), "no_rate: got the rate 250000"),
        ((np.zeros((2, 501), np.float32), 2000), "too_large: got 1002 samples"),
        (WAVE.astype(np.uint8), "type: got uint8, wanted .*int16"),
        (WAVE.astype(np.complex64), "type: got complex64, wanted"),
    ],
)
def test_sounds_that_are_refused(value: Any, sentence: str) -> None:
    with pytest.raises(DecodeError, match=sentence):
        sound(max_samples=1000).from_input(value)


def test_a_batch_of_sounds_is_no_sound_of_many_channels() -> None:
    with pytest.raises(DecodeError, match=r"got shape \[4, 400\], wanted one or two channels: give a batch as a list"):
        sound(channels="mono").from_input(np.concatenate([WAVE, WAVE]))


def test_views_of_arrays_are_taken_as_they_look() -> None:
    pixels = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    image = ImageConfig(size=8).build("image")
    for view in (pixels[..., ::-1], pixels[::-1], np.frombuffer(pixels.tobytes(), np.uint8).reshape(10, 12, 3)):
        taken = image.from_input(view)
        assert np.array_equal(taken, view)
        image.views["eval"](taken, {})  # torch takes no negative strides, and warns of read-only arrays


def test_loud_floats_pass_up_to_the_limit() -> None:
    assert np.array_equal(sound().from_input(8 * WAVE / np.abs(WAVE).max()), 8 * WAVE / np.abs(WAVE).max())


def test_a_sound_comes_with_its_rate() -> None:
    slow, fast = np.sin(np.arange(1000) * 0.2), np.sin(np.arange(4000) * 0.05)
    assert np.array_equal(sound().from_input((WAVE, 1000)), WAVE)
    for rate in (4000, 4000.0, np.int64(4000)):
        made = sound().from_input((torch.from_numpy(fast), rate))
        assert (made.shape, made.dtype) == ((1, 1000), np.float32)
        assert np.abs(made[0] - slow)[50:-50].max() < 1e-3
    assert sound(channels="mono").from_input((WAVE, 2000)).shape == (1, 200)


def test_frames_come_with_their_rate() -> None:
    for frames in (FRAMES, torch.from_numpy(FRAMES), FRAMES / 255):
        for rate in (10, 10.0, np.float32(10)):
            made = video().from_input((frames, rate))
            assert np.array_equal(made.frames, FRAMES)
            np.testing.assert_allclose(made.times, TIMES)
            assert made.seconds == 0.5


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ((FRAMES.transpose(0, 3, 1, 2), 10), r"shape: got frames \[5, 3, 9, 7\]"),
        ((FRAMES[..., 0], 10), r"shape: got frames \[5, 9, 7\] and"),
        ((FRAMES[..., :1], 10), r"shape: got frames \[5, 9, 7, 1\]"),
        ((FRAMES[0], 10), r"shape: got frames \[9, 7, 3\]"),
        (
            (FRAMES.astype(np.float32), 10),
            r"range: got floats \[5, 9, 7, 3\] from 0 to 255, wanted \[0, 1\]: divide by 255",
        ),
        ((np.where(FRAMES < 9, np.nan, FRAMES / 255), 10), "not_finite"),
        ((FRAMES.astype(np.int64), 10), r"type: got int64 \[5, 9, 7, 3\], wanted"),
        ((FRAMES[:0], 10), "empty: got shape"),
        ((FRAMES, 0), "range: got 0 frames a second, wanted a number above 0"),
        ((FRAMES, TIMES), "range: got array.* frames a second, wanted a number"),
        ((list(FRAMES), 10), "type: got builtins.list, wanted"),
    ],
)
def test_frames_with_a_rate_that_are_refused(value: Any, sentence: str) -> None:
    with pytest.raises(DecodeError, match=sentence):
        video().from_input(value)


def test_clips_are_taken_with_their_times() -> None:
    for frames in (FRAMES, torch.from_numpy(FRAMES), FRAMES / 255):
        made = video().from_input(Clip(frames, TIMES, 0.5))  # type: ignore[arg-type]
        assert np.array_equal(made.frames, FRAMES)
        assert np.array_equal(made.times, TIMES)
        assert made.seconds == 0.5


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (FRAMES, r"type: got ndarray, wanted .*mmssl\.data\.timeline\.Clip"),
        (Clip(FRAMES, TIMES[:4], 0.5), r"shape: got frames \[5, 9, 7, 3\] and times \[4\]"),
        (Clip(FRAMES[..., 0], TIMES, 0.5), r"shape: got frames \[5, 9, 7\]"),
        (Clip(FRAMES, TIMES[::-1], 0.5), "range: got times that decrease"),
        (Clip(FRAMES, TIMES - 0.1, 0.5), "range: got times that decrease, or lie outside 0 to 0.5 s"),
        (Clip(FRAMES, TIMES, 0.3), "range: got times that decrease, or lie outside 0 to 0.3 s"),
        (Clip(FRAMES, TIMES * np.nan, 0.5), "range: got times"),
        (Clip(FRAMES[:1], TIMES[:1], 0.0), "range: got times"),
        (Clip(FRAMES[:0], TIMES[:0], 0.5), "empty: got shape"),
        (
            Clip(np.zeros((1, 30, 40, 3), np.uint8), TIMES[:1], 0.5),
            "too_large: got frames of 1200 pixels, wanted at most 1000",
        ),
        (
            Clip(np.zeros((9, 9, 9, 3), np.uint8), np.arange(9) / 20, 0.5),
            "too_large: got 9 frames of 81 pixels, .*max_bytes",
        ),
    ],
)
def test_clips_that_are_refused(value: Any, sentence: str) -> None:
    with pytest.raises(DecodeError, match=sentence):
        video(max_pixels=1000, max_bytes=2000).from_input(value)


@pytest.mark.parametrize("captions", ["whole", "lines", "list", {"caption": 1.0}])
def test_a_string_is_one_caption_as_it_is(captions: Any, tmp_path: Path) -> None:
    for caption in ("a cat\nand a dog ", '["a cat"]', str(tmp_path / "a.txt")):
        assert text(captions).from_input(caption) == (caption,)
    with pytest.raises(DecodeError, match=r"missing: got ' \\n', wanted a caption"):
        text(captions).from_input(" \n")


def test_files_of_text_hold_one_caption(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n")
    assert text("lines").from_input(tmp_path / "a.txt") == text("lines").from_input(b"a cat\n") == ("a cat",)
    assert text({"caption": 1.0}).from_input(b'{"caption": "a cat"}') == ("a cat",)
    with pytest.raises(DecodeError, match="several: got 2 captions, wanted one: give each as a string"):
        text("lines").from_input(b"a cat\na dog\n")
    with pytest.raises(DecodeError, match="type: got list, wanted a string, or the Path or bytes of a file"):
        text().from_input(["a cat"])


def test_modalities_without_values_from_python_say_so() -> None:
    assert LabelConfig().build("label").from_input(b"7") == 7
    with pytest.raises(DecodeError, match="type: got float, wanted the path of a file, or its bytes"):
        LabelConfig().build("label").from_input(7.0)
