"""Sounds and videos in shards that are not what they should be: each is named with its sample and with what is wrong."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmssl.curation.check import check_shards
from mmssl.data.media.encode import encode_clip
from mmssl.data.modality import DecodeError
from mmssl.data.shards.writer import write_shard
from tests.curation.test_pack import picture
from tests.data.media.test_container import MP4, SOUND, cut
from tests.data.modalities.test_audio import build as build_sound
from tests.data.modalities.test_audio import encode, sound, spoilt, without_rate
from tests.data.modalities.test_video import build as build_video

HOURS = 10 * 3600


def hours_of_sound() -> bytes:
    """Ten hours of silence in some hundred kilobytes."""
    file, minutes = io.BytesIO(), np.zeros((1_000 * 3600, 1), dtype=np.int16)
    with soundfile.SoundFile(file, "w", 1_000, 1, format="FLAC", subtype="PCM_16") as writer:
        for _ in range(10):
            writer.write(minutes)
    return file.getvalue()


def hours_of_video() -> bytes:
    """Ten hours, in which the picture changes every minute."""
    frames = np.zeros((HOURS // 60, 16, 16, 3), dtype=np.uint8)
    return encode_clip("mp4", frames, None, times=60.0 * np.arange(len(frames)), options={"g": "60"})


BAD = {  # extension, bytes, reason, what is said
    "a picture called wav": (
        "wav",
        picture(0),
        "undecodable",
        r"bytes beginning with b'.*JFIF.*, wanted wav, flac, ogg",
    ),
    "a picture called mp4": (
        "mp4",
        picture(0),
        "undecodable",
        r"bytes beginning with b'.*JFIF.*, wanted mp4, mov, webm",
    ),
    "a sound called mp4": (
        "mp4",
        encode(sound()),
        "undecodable",
        r"bytes beginning with b'RIFF.*, wanted mp4, mov, webm",
    ),
    "zero length": ("wav", encode(sound()[:0]), "empty", r"no samples in 44 bytes of WAV"),
    "zero bytes": ("flac", b"", "empty", r"0 bytes, wanted a sound"),
    "no rate": ("wav", without_rate(), "no_rate", r"the header has no sample rate, wanted 1000 to 192000 Hz"),
    "NaN": ("wav", spoilt(np.nan), "not_finite", r"1 samples are NaN or infinite"),
    "no video stream": ("mp4", SOUND, "missing", r"got the streams: audio; wanted a stream of video"),
    "truncated mp4": (
        "mp4",
        cut("mp4", 0.6),
        "undecodable",
        r"truncated file: got \d+ bytes, wanted \d+",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_audit_names_the_sample_and_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    extension, data, reason, said = BAD[name]
    good = {"wav": encode(sound()), "flac": encode(sound(), "FLAC"), "mp4": MP4}[extension]
    samples = [{"__key__": key, extension: value} for key, value in (("a", good), ("b", data), ("c", good))]
    write_shard(tmp_path, "000000.tar", 0, 3, samples)
    found = check_shards([tmp_path])
    assert not found.ok
    assert [(fault.key, fault.field, fault.reason) for fault in found.faults] == [("b", extension, reason)]
    assert re.search(said, found.faults[0].detail), found.faults[0].detail


@pytest.mark.parametrize("kind", ["sound", "video"])
def test_ten_hours_are_refused_by_the_header_and_a_window_of_them_is_read(kind: str) -> None:
    data = hours_of_sound() if kind == "sound" else hours_of_video()
    modality = build_sound(1_000, max_samples=1_000_000) if kind == "sound" else build_video(max_bytes=100_000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r"too_large: (.*shorten the window|got 36000\.0 s of 1 channels)"):
            modality.decode(data, kind)
        assert modality.extent(data, kind) == pytest.approx((HOURS, 0.0), abs=1.0)
        part = modality.decode(data, kind, (HOURS - 1800.0, 120.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # all of the sound would be 144 MB
    if isinstance(part, np.ndarray):
        assert part.shape == (1, 120_000)
    else:
        assert part.times.tolist() == [0.0, 60.0]
