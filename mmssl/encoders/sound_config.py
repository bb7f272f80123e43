"""Base classes of the settings of audio encoders: sampling rate, channels, and lengths beside a fixed number of frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from pydantic import Field

from mmssl.core.encoder import EncoderConfig
from mmssl.core.input_spec import InputSpec
from mmssl.encoders.spectrogram import FrontEndConfig, KaldiConfig, MelConfig

SILENCE = 0.05
"""Largest share of a spectrogram that may be silence: AST fills the 998 frames of ten seconds up to 1024."""


class SoundEncoderConfig(EncoderConfig, ABC):
    """Base of the configs of all audio encoders."""

    @property
    @abstractmethod
    def rate(self) -> int:
        """Sampling rate of the front-end in Hz."""

    @property
    @abstractmethod
    def stereo(self) -> bool:
        """Whether the front-end needs stereo waveforms."""

    def wants(self) -> InputSpec:
        return InputSpec(rate=self.rate, channels=2 if self.stereo else None)


class SpectrogramEncoderConfig(SoundEncoderConfig, ABC):
    """Base of the configs of encoders of one spectrogram, whose number of frames may be fixed."""

    @abstractmethod
    def spectrogram(self) -> KaldiConfig | MelConfig:
        """Settings of the spectrogram."""

    def columns(self, frames: int) -> int:
        """Columns of the token grid of a number of frames: those at the end that fill no patch have no place in it."""
        return frames

    @property
    def rate(self) -> int:
        """Sampling rate of the front-end in Hz."""
        return self.spectrogram().rate

    @property
    def stereo(self) -> bool:
        """Whether the front-end needs stereo waveforms."""
        return self.spectrogram().planes == 2

    def warnings(self, views: InputSpec) -> Iterator[str]:
        """Sounds that the fixed number of frames would cut off, or fill up with more than a little silence."""
        if views.seconds is not None:
            yield from self._misfit(views.seconds)

    def _misfit(self, seconds: float) -> Iterator[str]:
        """What happens to sounds of this length, if the front-end has another number of frames."""
        front_end = self.spectrogram()
        frames = front_end.frames
        if frames is None:
            return
        made = front_end.build().frame_count(round(front_end.rate * seconds))
        got = f"seconds: got {seconds:g}, of which {made} frames are made, and the front_end has {frames}"
        if self.columns(made) > self.columns(frames):
            yield f"{got}: the end of each sound would be cut off"
        elif frames - made > SILENCE * frames:
            yield f"{got}: {100 * (frames - made) / frames:.0f} % of each would be silence"


class FrontEndEncoderConfig(SpectrogramEncoderConfig, ABC):
    """Base of the configs of our encoders of spectrograms.

    Attributes:
        front_end: waveforms to spectrograms.
        seconds: usual length of the sounds; other lengths work too: position embeddings are resampled. A front-end of fixed
            `frames` fills or cuts them: a run refuses `seconds` of which it would cut off the end, or make more than 5 % silence.
    """

    front_end: FrontEndConfig
    seconds: float = Field(gt=0)

    def spectrogram(self) -> KaldiConfig | MelConfig:
        """Settings of the spectrogram."""
        return self.front_end.settings

    def mistakes(self) -> Iterator[str]:
        """`seconds` that are not the fixed number of frames."""
        for said in self._misfit(self.seconds):
            yield f"{said}; set front_end.frames to the former, or seconds to the length of the sounds"
