"""Frames and sounds are those of the program ffmpeg, where it is installed; other tests have the values that it gave."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmssl.data.media.encode import encode_clip
from tests.data.media.test_container import FRAMES, RATE, audio, noise
from tests.data.media.test_mp3 import bare
from tests.data.media.test_mp3 import encode as encode_mp3
from tests.data.media.test_wav import encode as encode_wav
from tests.data.media.test_wav import told
from tests.data.modalities.test_audio import encode
from tests.data.modalities.test_video import SHOWN, quarters, with_matrix

FFMPEG = shutil.which("ffmpeg") or ""
pytestmark = pytest.mark.skipif(not FFMPEG, reason="the program ffmpeg is not installed")


@pytest.mark.parametrize("matrix", SHOWN)
def test_frames_are_shown_alike(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(with_matrix(*matrix))
    command = [FFMPEG, "-v", "error", "-i", str(tmp_path / "a.mp4"), "-frames:v", "1", str(tmp_path / "a.png")]
    subprocess.run(command, check=True, timeout=60)
    shown = np.asarray(Image.open(tmp_path / "a.png"))
    assert (shown.shape[:2], quarters(shown)) == SHOWN[matrix]


def clip(container: str, start: float, rate: int = RATE) -> bytes:
    return encode_clip(container, FRAMES, noise(1.5)[:: RATE // rate], fps=15, rate=rate, sound_start=start)


SOUNDS: dict[str, Callable[[], bytes]] = {
    **{
        f"{form} {start}": lambda f=form, s=start: clip(f, s)
        for form in ("mp4", "mkv", "webm")
        for start in (0, 0.1, 0.333)
    },  # type: ignore[misc]
    **{f"webm {rate}": lambda r=rate: clip("webm", 0, r) for rate in (8_000, 16_000, 24_000)},  # type: ignore[misc]
    "ogg Opus": lambda: encode(noise(1.5), "OGG", "OPUS"),
    "ogg Vorbis": lambda: encode(noise(1.5), "OGG", "VORBIS"),
    "mp3": lambda: encode_mp3(noise(1.5), RATE),
    "mp3 bare": lambda: bare(encode_mp3(noise(1.5), RATE)),
    "wav": lambda: told(encode_wav(), 0xFFFFFFFF, 0xFFFFFFFF),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_begin_at_the_same_sample(name: str, tmp_path: Path) -> None:
    data = SOUNDS[name]()
    (tmp_path / "a").write_bytes(data)
    rate = 8_000 if name == "wav" else RATE
    placed = "aresample=async=1:first_pts=0:min_hard_comp=0.01"  # silence up to the time stamp of the first frame
    command = [FFMPEG, "-v", "error", "-i", str(tmp_path / "a"), "-map", "0:a", "-af", placed, "-f", "f32le", "-"]
    theirs = np.frombuffer(subprocess.run(command, check=True, timeout=60, capture_output=True).stdout, np.float32)
    ours = audio(rate).decode(data, "")
    # ffmpeg does not always drop the padding of the last frame.
    assert 0 <= len(theirs) // 2 - ours.shape[1] < 1024
    np.testing.assert_allclose(ours, theirs.reshape(-1, 2).T[:, : ours.shape[1]], atol=2e-4)
