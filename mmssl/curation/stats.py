"""Figures of a data set: what `mmssl shards stats` does. A sample of the samples is read, evenly spread over all shards.

For picking an image size, a context length, the mean and standard deviation of normalisation, and for knowing what one core
can load.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.curation.check import default_modalities
from mmssl.curation.check_report import Spread, aligned
from mmssl.data.media.frames import VideoFigures, video_figures
from mmssl.data.media.sound_file import SoundFigures, sound_figures
from mmssl.data.modalities.audio import AudioModality
from mmssl.data.modalities.image import ImageModality
from mmssl.data.modalities.text import TextModality
from mmssl.data.modalities.tokenizers import ClipTokenizerConfig
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import Remote
from mmssl.data.shards.writer import Progress

MAX_TOKENS = 1024  # longer captions count as so long


@dataclass(frozen=True)
class StatsReport:
    """Figures of a data set; spreads are over the sampled samples, except `fields`.

    Attributes:
        shards, samples, bytes: of the whole set.
        sampled: samples that were read and decoded.
        undecodable: members among them that could not be decoded, and are left out.
        fields: extension -> spread of sizes in bytes, over all samples.
        width, height: of pictures in pixels.
        mean, std: of pixels from 0 to 1 for red, green and blue, each picture with the same weight; None without pictures.
        words, tokens: of captions; tokens are CLIP's, with start and end.
        classes: label -> how often it was met.
        sound_seconds, sound_level: of sounds, also of those in videos; the level is their root mean square in dB below full scale.
        sound_rates, sound_channels: sample rate in Hz, and number of channels -> how many sounds have it, as stored.
        video_seconds, frame_rates, video_width, video_height: of videos.
        read_rate, decode_rate: samples a second of this process on one thread for reading, and for decoding what was read.
        rate: of both, one after the other.
    """

    shards: int
    samples: int
    bytes: int
    sampled: int
    undecodable: int
    fields: Mapping[str, Spread]
    width: Spread
    height: Spread
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    words: Spread
    tokens: Spread
    classes: Mapping[int, int]
    sound_seconds: Spread
    sound_level: Spread
    sound_rates: Mapping[int, int]
    sound_channels: Mapping[int, int]
    video_seconds: Spread
    frame_rates: Spread
    video_width: Spread
    video_height: Spread
    read_rate: float
    decode_rate: float
    rate: float

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        return json.dumps(asdict(self), indent=1)

    def table(self) -> str:
        """The figures for people, lines of text."""
        rows: list[tuple[str, Any]] = [
            (
                "samples",
                f"{self.samples:,} in {self.shards} shards of {self.bytes:,} bytes; {self.sampled:,} looked at",
            ),
            *((f".{name}", f"in {spread.count:,}, {spread.text('bytes')}") for name, spread in self.fields.items()),
        ]
        if self.mean is not None and self.std is not None:
            rows += [("width", self.width.text("pixels")), ("height", self.height.text("pixels"))]
            rows += [("mean", _list(self.mean)), ("std", _list(self.std))]
        if self.words.count:
            rows += [("caption words", self.words.text()), ("CLIP tokens", self.tokens.text())]
        if self.classes:
            counts = list(self.classes.values())
            rows.append(("classes", f"{len(counts)}, {min(counts):,} to {max(counts):,} samples each"))
        if self.sound_seconds.count:
            rows += [("sounds", self.sound_seconds.text("s")), ("sound level", self.sound_level.text("dB"))]
            rows += [("sample rates", _counts(self.sound_rates, "Hz")), ("channels", _counts(self.sound_channels))]
        if self.video_seconds.count:
            rows += [("videos", self.video_seconds.text("s")), ("frames a second", self.frame_rates.text())]
            rows += [
                ("video width", self.video_width.text("pixels")),
                ("video height", self.video_height.text("pixels")),
            ]
        speed = f"{self.rate:,.0f} samples/s on one thread (reading {self.read_rate:,.0f}, decoding {self.decode_rate:,.0f})"
        rows.append(("speed", speed))
        if self.undecodable:
            rows.append(("undecodable", f"{self.undecodable:,} members: see `mmssl shards check`"))
        return "\n".join(aligned(rows))


def stats(
    shards: Sequence[str | Path],
    modalities: Mapping[str, Modality] | None = None,
    *,
    sample: int = 2000,
    remote: Remote | None = None,
    progress: Progress | None = None,
) -> StatsReport:
    """Measure a data set.

    Args:
        shards: paths, folders, globs, brace patterns; or URLs with braces.
        modalities: what decodes which members; None: pictures, sounds, videos, `.txt` (one caption a line) and `.cls`.
        sample: how many samples are read and decoded.
        remote: the way to URLs; default: with the usual cache.
        progress: called with (samples done, samples to do).

    Raises:
        ValueError: `sample` is below 1.
        DataError: shards that cannot be used.
    """
    if sample < 1:
        raise ValueError(f"got sample={sample}, wanted at least 1")
    index = ShardIndex.open(shards, remote=remote)
    chosen = np.unique(np.linspace(0, len(index) - 1, min(sample, len(index))).round().astype(int))
    tally = _Tally(default_modalities() if modalities is None else modalities)
    for done, ordinal in enumerate(chosen.tolist(), 1):
        tally.add(index, ordinal)
        if progress is not None and (done % 100 == 0 or done == len(chosen)):
            progress(done, len(chosen))
    return tally.report(index, len(chosen))


class _Tally:
    """Sums over the samples that were looked at."""

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        self.decoders: dict[str, tuple[Modality, ...]] = {}
        for modality in modalities.values():
            self.decoders |= {name: (*self.decoders.get(name, ()), modality) for name in modality.extensions}
        self.tokenizer = ClipTokenizerConfig(context_length=MAX_TOKENS).build()
        self.sizes: list[tuple[int, int]] = []
        self.moments: list[np.ndarray] = []  # of each picture, [2, 3]: mean and mean square of each channel
        self.words: list[int] = []
        self.tokens: list[int] = []
        self.labels: Counter[int] = Counter()
        self.sounds: list[SoundFigures] = []
        self.videos: list[VideoFigures] = []
        self.undecodable = 0
        self.reading = self.decoding = 0.0

    def add(self, index: ShardIndex, ordinal: int) -> None:
        start = time.perf_counter()
        try:
            fields = index.read(ordinal).fields
        except DecodeError:
            self.undecodable += 1
            return
        finally:
            self.reading += time.perf_counter() - start
        for extension, data in fields.items():
            for modality in self.decoders.get(extension, ()):
                start = time.perf_counter()
                try:
                    value = _decode(modality, data, extension)
                except DecodeError as error:
                    self.undecodable += error.reason != "missing"  # a mute video is whole
                    continue
                finally:
                    self.decoding += time.perf_counter() - start
                self._measure(modality, value)

    def _measure(self, modality: Modality, value: Any) -> None:
        if isinstance(modality, ImageModality):
            self.sizes.append(value.shape[:2])
            pixels = value.reshape(-1, 3).astype(np.float32) / 255
            self.moments.append(np.stack([pixels.mean(0, dtype=np.float64), (pixels**2).mean(0, dtype=np.float64)]))
        elif isinstance(modality, TextModality):
            self.words += [len(caption.split()) for caption in value]
            self.tokens += (self.tokenizer(value).argmax(1) + 1).tolist()  # the end mark has the largest id
        elif isinstance(modality, AudioModality):
            self.sounds.append(value)
        elif isinstance(modality, VideoModality):
            self.videos.append(value)
        elif isinstance(value, int):
            self.labels[value] += 1

    def report(self, index: ShardIndex, sampled: int) -> StatsReport:
        sizes: dict[str, list[int]] = {}
        for ordinal in range(len(index)):
            for extension, _, size in index.members(ordinal):
                sizes.setdefault(extension, []).append(size)
        mean = std = None
        if self.moments:
            first, second = np.mean(self.moments, axis=0)
            mean, std = tuple(first.tolist()), tuple(np.sqrt(np.maximum(second - first**2, 0)).tolist())
        return StatsReport(
            shards=len(index.shards),
            samples=len(index),
            bytes=index.shard_bytes,
            sampled=sampled,
            undecodable=self.undecodable,
            fields={name: Spread.of(one) for name, one in sorted(sizes.items())},
            width=Spread.of([width for _, width in self.sizes]),
            height=Spread.of([height for height, _ in self.sizes]),
            mean=mean,
            std=std,
            words=Spread.of(self.words),
            tokens=Spread.of(self.tokens),
            classes=dict(sorted(self.labels.items())),
            sound_seconds=Spread.of([sound.seconds for sound in self.sounds]),
            sound_level=Spread.of([sound.level for sound in self.sounds]),
            sound_rates=dict(sorted(Counter(sound.rate for sound in self.sounds).items())),
            sound_channels=dict(sorted(Counter(sound.channels for sound in self.sounds).items())),
            video_seconds=Spread.of([video.seconds for video in self.videos]),
            frame_rates=Spread.of([video.frames / video.seconds for video in self.videos]),
            video_width=Spread.of([video.width for video in self.videos]),
            video_height=Spread.of([video.height for video in self.videos]),
            read_rate=sampled / self.reading,
            decode_rate=sampled / self.decoding if self.decoding else 0.0,
            rate=sampled / (self.reading + self.decoding),
        )


def _decode(modality: Modality, data: bytes, extension: str) -> Any:
    """The value of a member; of sounds and videos, which may be long, the figures alone."""
    if isinstance(modality, AudioModality):
        return sound_figures(data, modality.max_samples)
    if isinstance(modality, VideoModality):
        return video_figures(data, modality.max_pixels)
    return modality.decode(data, extension)


def _counts(counts: Mapping[int, int], unit: str = "") -> str:
    return ", ".join(f"{value}{unit and f' {unit}'}: {count:,}" for value, count in counts.items())


def _list(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"
