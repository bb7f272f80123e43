"""`mmssl shards stats --front-end`: mean and standard deviation of a front-end's logarithms over the sounds of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmssl.core.errors import DataError, RecipeError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.data.shards.remote import Remote
    from mmssl.encoders.spectrogram import FrontEnd, FrontEndSettings


@dataclass(frozen=True)
class FrontEndReport:
    """Mean and standard deviation of a front-end's log spectrogram.

    Attributes:
        front_end: name or settings; write the figures to its `mean` and `std` in the recipe.
        mean, std: of its logarithms, before any normalisation; each value counts alike. LAION-CLAP's is in dB.
        sounds: number measured. left_out: samples without sound, damaged, or shorter than one frame.
    """

    front_end: str
    mean: float
    std: float
    sounds: int
    left_out: int

    def table(self) -> str:
        """One line for people."""
        tail = f", {self.left_out:,} samples left out" if self.left_out else ""
        return f"{self.front_end}: mean {self.mean:.4f}, std {self.std:.4f} over {self.sounds:,} sounds{tail}"


def front_end_stats(shards: Sequence[str], name: str, *, sample: int, remote: Remote | None = None) -> FrontEndReport:
    """Measure a front-end on whole sounds, without its own statistics and without padding.

    Args:
        shards: paths, folders, globs, brace patterns; or URLs with braces.
        name: "mel", "kaldi" (both with the numbers that recipes have when they name no others), a preset, or settings as
            recipes have them, for example "{kind: mel, rate: 8000, mels: 40}". Where channels are compared, their mean is measured.
        sample: number of samples to read, evenly spread.

    Raises:
        RecipeError: no such front-end, or settings that are wrong. DataError: no shards, or no usable sound in them.
    """
    import numpy as np

    from mmssl.data.media.container import SOUNDS, VIDEOS
    from mmssl.data.modalities.audio import AudioConfig, ChannelRule
    from mmssl.data.samples import iterate
    from mmssl.data.shards.index import ShardIndex
    from mmssl.encoders.spectrogram_statistics import measure_statistics

    front_end = _front_end(name)
    channels: ChannelRule = "stereo" if front_end.planes == 2 else "keep"
    audio = AudioConfig(rate=front_end.settings.rate, seconds=1.0, channels=channels, extensions=SOUNDS + VIDEOS)
    index = ShardIndex.open(list(shards), remote=remote)
    chosen = np.unique(np.linspace(0, len(index) - 1, min(sample, len(index))).round().astype(int)).tolist()
    used = 0

    def waves() -> Iterator[Tensor]:
        nonlocal used
        import torch

        from mmssl.core.sample import Sample

        for one in iterate(index, {"audio": audio.build("audio")}, chosen):
            if isinstance(one, Sample) and front_end.frame_count(one.values["audio"].shape[1]) >= 1:
                used += 1
                yield torch.from_numpy(one.values["audio"])[None]

    try:
        mean, std = measure_statistics(front_end, waves())
    except ValueError as error:
        raise DataError(f"no sample of {len(chosen)} has a sound that {name} can measure: {error}") from error
    return FrontEndReport(name, mean, std, used, len(chosen) - used)


def _front_end(name: str) -> FrontEnd:
    from mmssl.encoders.spectrogram import PRESETS, KaldiConfig, MelConfig

    known = {"mel": MelConfig(), "kaldi": KaldiConfig(), **PRESETS}
    if name.lstrip().startswith("{"):
        settings: FrontEndSettings = _settings(name)
    elif name in known:
        settings = known[name]
    else:
        raise RecipeError(
            f"--front-end {name!r}{did_you_mean(name, known)}: wanted one of {', '.join(known)}, or settings such as "
            "'{kind: mel, rate: 8000, mels: 40}'"
        )
    bare: dict[str, object] = {"mean": 0.0, "std": 1.0, "frames": None}
    if settings.channel == "level_difference":  # both planes are divided by what holds for the first
        bare["channel"] = "mean"
    return settings.model_copy(update=bare).build()  # type: ignore[attr-defined, no-any-return]


def _settings(text: str) -> FrontEndSettings:
    from mmssl.core.config import Config
    from mmssl.encoders.spectrogram import FrontEndConfig
    from mmssl.recipe.validate import validate_text

    class Given(Config):
        front_end: FrontEndConfig

    return validate_text(Given, f"front_end: {text}", "--front-end").front_end.settings
