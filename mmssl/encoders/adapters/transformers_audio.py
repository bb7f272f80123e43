"""Adapters to transformers' audio models: the spectrogram transformer AST (arXiv:2104.01778) and CLAP's HTSAT (arXiv:2211.06687).

Their front-ends run inside `prepare`, on the device, with the settings of the folder's preprocessor_config.json.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from mmssl.core.encoder import Encoder, Features
from mmssl.encoders.adapters.adapter import Adapter, refuse_masks
from mmssl.encoders.adapters.transformers_loading import (
    HfConfig,
    block_count,
    block_outputs,
    build_model,
    load_tower,
    read_preprocessor,
    read_settings,
    require_complete,
)
from mmssl.encoders.clap_front_end import ClapFrontEndConfig
from mmssl.encoders.sound_config import SoundEncoderConfig, SpectrogramEncoderConfig
from mmssl.encoders.spec_augment import SpecAugmentConfig
from mmssl.encoders.spectrogram import (
    PRESETS,
    FrontEndConfig,
    KaldiConfig,
    MelConfig,
)
from mmssl.encoders.windows import encode_windows


def _refuse_two(front_end: object, spec_augment: object) -> None:
    if front_end is not None and spec_augment is not None:
        raise ValueError("got spec_augment beside a front_end; set front_end.spec_augment, or leave front_end out")


class HfAstConfig(HfConfig, SpectrogramEncoderConfig):
    """Settings of a transformers audio spectrogram transformer (AST).

    Attributes:
        pool: "pooler": the mean of the class and the distillation token, as in AST; "cls": the class token; "mean": the mean of
            the patch tokens.
        front_end: waveforms to spectrograms, with the model's numbers of filters and frames; None: from the folder's
            preprocessor_config.json, and AST's for a model from scratch.
        spec_augment: SpecAugment masks in training; with a front_end set them there.
    """

    kind: Literal["hf_ast"] = "hf_ast"
    pool: Literal["pooler", "cls", "mean"] = "pooler"
    front_end: FrontEndConfig | None = None
    spec_augment: SpecAugmentConfig | None = None

    @model_validator(mode="after")
    def _one_augmentation(self) -> Self:
        _refuse_two(self.front_end, self.spec_augment)
        return self

    @model_validator(mode="after")
    def _one_plane(self) -> Self:
        if self.front_end is not None and self.front_end.settings.planes != 1:
            raise ValueError(
                "front_end.channel: got 'both', wanted mean or first, because the model has one input plane"
            )
        return self

    @property
    def rate(self) -> int:
        """Sampling rate of the front-end in Hz."""
        if self.front_end is None and self.path is None:
            return PRESETS["ast"].rate
        return self.spectrogram().rate

    @property
    def stereo(self) -> bool:
        """False: the model has one input plane."""
        return False

    def spectrogram(self) -> KaldiConfig | MelConfig:
        """Settings of the front-end: `front_end`, or those of the folder's preprocessor_config.json.

        Raises:
            ValueError: the folder's preprocessor_config.json lacks some of them.
        """
        if self.front_end is not None:
            return self.front_end.settings
        if self.path is None:
            model = read_settings(self)
            sizes = {"frames": model.max_length, "mels": model.num_mel_bins}
            return PRESETS["ast"].model_copy(update={**sizes, "spec_augment": self.spec_augment})
        values = read_preprocessor(self)
        normal = values.get("do_normalize", True)
        return KaldiConfig(
            rate=values.get("sampling_rate", 16_000),
            mels=values.get("num_mel_bins", 128),
            frames=values.get("max_length", 1024),
            mean=values.get("mean", -4.2677393) if normal else 0.0,
            std=2 * values.get("std", 4.5689974) if normal else 1.0,
            spec_augment=self.spec_augment,
        )

    def build(self) -> HfAstEncoder:
        """Build the model from the folder, load our `weights` over the folder's, freeze.

        Raises:
            ValueError: the settings are not an AST's, name code to run, or do not match the front-end.
            CheckpointError: the folder or the weights do not match the model.
        """
        encoder = HfAstEncoder(self)
        load_tower(encoder, self)
        return encoder


class HfClapAudioConfig(HfConfig, SoundEncoderConfig):
    """Settings of transformers' CLAP audio tower (HTSAT), with or without fusion.

    Attributes:
        pool: "pooler": the mean of the last feature map; "projection": the same after CLAP's projection into the shared space.
        seconds: usual length of the sounds. Fusion layers, which join the chunks of sounds longer than ten seconds, are trained
            only if it is above 10.
        front_end: waveforms to spectrograms; None: the folder's preprocessor_config.json, and LAION's for a model from scratch.
        spec_augment: SpecAugment masks in training; with a front_end set them there.
    """

    kind: Literal["hf_clap_audio"] = "hf_clap_audio"
    pool: Literal["pooler", "projection"] = "pooler"
    seconds: float = Field(default=10.0, gt=0)
    front_end: ClapFrontEndConfig | None = None
    spec_augment: SpecAugmentConfig | None = None

    @model_validator(mode="after")
    def _one_augmentation(self) -> Self:
        _refuse_two(self.front_end, self.spec_augment)
        return self

    @property
    def rate(self) -> int:
        """Sampling rate of the front-end in Hz."""
        if self.front_end is None and self.path is None:
            return PRESETS["clap_htsat_fused"].rate  # equal in both presets
        return self.spectrogram(fused=False).settings.rate

    @property
    def stereo(self) -> bool:
        """False: the input planes of these models are chunks of time."""
        return False

    def spectrogram(self, *, fused: bool) -> ClapFrontEndConfig:
        """Settings of the front-end; `fused` chooses the preset of a model from scratch.

        Raises:
            ValueError: the folder's preprocessor_config.json lacks some of them.
        """
        if self.front_end is not None:
            return self.front_end
        if self.path is None:
            kind: Any = "clap_htsat_fused" if fused else "clap_htsat_unfused"
            return ClapFrontEndConfig(kind=kind, spec_augment=self.spec_augment)
        values = read_preprocessor(self)
        if values.get("padding", "repeatpad") != "repeatpad":
            raise ValueError(
                f"got padding {values['padding']!r} in the preprocessor_config.json of {str(self.path)!r}, wanted 'repeatpad'; "
                "set front_end to pad by whole repeats"
            )
        fusion = values.get("truncation", "fusion") == "fusion"
        mel = MelConfig(
            rate=values.get("sampling_rate", 48_000),
            mels=values.get("feature_size", 64),
            low=values.get("frequency_min", 0),
            high=values.get("frequency_max", 14_000),
            window=values.get("fft_window_size", 1024),
            hop=values.get("hop_length", 480),
            scale="htk" if fusion else "slaney",
            norm=None if fusion else "slaney",
            log="db",
            floor=1e-10,
        )
        kind = "clap_htsat_fused" if fusion else "clap_htsat_unfused"
        seconds = values.get("max_length_s", 10)
        return ClapFrontEndConfig(kind=kind, mel=mel, seconds=seconds, spec_augment=self.spec_augment)

    def build(self) -> HfClapAudioEncoder:
        """Build the tower from the folder, load our `weights` over the folder's, freeze.

        Raises:
            ValueError: the settings are not a CLAP tower's, name code to run, or do not match the front-end.
            CheckpointError: the folder or the weights do not match the model.
        """
        encoder = HfClapAudioEncoder(self)
        load_tower(encoder, self)
        return encoder


class HfAstEncoder(Adapter):
    """transformers AST: waveforms [B, C, samples] -> pooled [B, D] and patch tokens [B, T, D], after the final norm.

    The grid is (rows of patches over the filters from low to high, columns over time), read row by row. Its size is fixed: the
    front-end cuts or pads sounds to it.
    """

    capabilities = frozenset({Encoder.TOKENS})

    def __init__(self, config: HfAstConfig) -> None:
        settings = read_settings(config)
        if settings.model_type != "audio-spectrogram-transformer":
            raise ValueError(f"got a {settings.model_type} model, wanted model_type audio-spectrogram-transformer")
        front_end = config.spectrogram()
        if (front_end.mels, front_end.frames) != (settings.num_mel_bins, settings.max_length):
            raise ValueError(
                f"got a front_end of {front_end.mels} mels and {front_end.frames} frames, wanted the model's "
                f"{settings.num_mel_bins} and {settings.max_length}"
            )
        model, missing = build_model(config, settings=settings)
        super().__init__(model)
        self.pool = config.pool
        assert isinstance(front_end, KaldiConfig | MelConfig)
        self.front_end = front_end.build()
        self.grid = tuple(model.embeddings.get_shape(settings))
        example = torch.zeros(1, 1, front_end.rate)
        self.width = self.connect(example).pooled.shape[-1]
        self.offer_hidden(example, block_count(model))
        require_complete(self, missing, config)

    def prepare(self, x: Tensor) -> Tensor:
        """Waveforms [B, C, samples], int16 or float in [-1, 1] -> normalised spectrograms [B, frames, filters]."""
        return self._spectrograms(x, augment=False)

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`. Several windows of a sound [B, n, C, samples] give the mean of their pooled features, no tokens.

        Raises:
            ValueError: masks are given, `hidden` is above the depth, or `x` is not audio.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        if x.ndim == 4 and not hidden:
            return encode_windows(self, x)
        made = self._spectrograms(x, augment=self.training)
        out = self.model(input_values=made, output_hidden_states=hidden > 0)
        tokens = out.last_hidden_state[:, 2:]
        pooled = {"pooler": out.pooler_output, "cls": out.last_hidden_state[:, 0], "mean": tokens.mean(1)}[self.pool]
        states = tuple(state[:, 2:] for state in block_outputs(out, hidden))
        return Features(pooled, tokens, self.grid, states or None)

    def _spectrograms(self, x: Tensor, *, augment: bool) -> Tensor:
        return self.front_end(x, augment=augment)[:, 0].transpose(1, 2)  # type: ignore[no-any-return]


class HfClapAudioEncoder(Adapter):
    """transformers CLAP audio tower: waveforms [B, C, samples] -> pooled [B, D] and (unless projected) feature-map cells [B, T, D].

    The grid is (rows over the filters, columns over time). Evaluation is deterministic, also of long sounds; see `ClapFrontEnd`.
    """

    def __init__(self, config: HfClapAudioConfig) -> None:
        import transformers

        settings = read_settings(config)
        settings = settings.audio_config if settings.model_type == "clap" else settings
        if settings.model_type != "clap_audio_model":
            raise ValueError(f"got a {settings.model_type} model, wanted model_type clap or clap_audio_model")
        front_end = config.spectrogram(fused=settings.enable_fusion)
        if settings.enable_fusion != (front_end.kind == "clap_htsat_fused"):
            raise ValueError(f"got front_end {front_end.kind} for a model with enable_fusion {settings.enable_fusion}")
        bare = "ClapAudioModel" in (settings.architectures or ())
        if bare and config.pool == "projection":
            raise ValueError(f"got pool: projection, and {str(config.path)!r} has no projection; use pooler")
        classes = transformers.ClapAudioModel, transformers.ClapAudioModelWithProjection
        model, missing = build_model(config, settings=settings, model_class=classes[0] if bare else classes[1])
        super().__init__(model if bare or config.pool == "projection" else model.audio_model)
        self.projected = config.pool == "projection"
        self.fused = settings.enable_fusion
        self.front_end = front_end.build()
        start = "audio_model.audio_encoder" if self.projected else "audio_encoder"
        example = torch.zeros(1, 1, round(front_end.settings.rate * config.seconds))
        features = self.connect(example, first=(f"{start}.patch_embed.", f"{start}.batch_norm."))
        self.width = features.pooled.shape[-1]
        if features.tokens is not None:
            self.capabilities = frozenset({Encoder.TOKENS})
            self.grid = features.grid
        require_complete(self, missing, config)

    def prepare(self, x: Tensor) -> Tensor:
        """Waveforms [B, C, samples], int16 or float in [-1, 1] -> spectrograms [B, 1 or 4, frames, filters] in dB."""
        return self.front_end(x, augment=False).transpose(2, 3)  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        hidden: int = 0,
        pooled_only: bool = False,
    ) -> Features:
        """See `Encoder.forward`. Several windows of a sound [B, n, C, samples] give the mean of their pooled features, no tokens.

        Raises:
            ValueError: masks or hidden layers are asked for, or `x` is not audio.
        """
        refuse_masks(self, keep, replace)
        self.check_hidden(hidden)
        if x.ndim == 4:
            return encode_windows(self, x)
        out = self.model(**self.inputs(x))
        if self.projected:
            return Features(out.audio_embeds)
        cells = out.last_hidden_state  # [B, D, rows, columns]
        return Features(out.pooler_output, cells.flatten(2).transpose(1, 2), (cells.shape[2], cells.shape[3]))

    def inputs(self, x: Tensor) -> dict[str, Tensor | None]:
        """Arguments of the model: spectrograms, and whether sounds are longer than one, [B, 1]; SpecAugment in training."""
        longer = torch.full((len(x), 1), self.front_end.is_longer(x.shape[2]), device=x.device) if self.fused else None
        return {"input_features": self.front_end(x, augment=self.training).transpose(2, 3), "is_longer": longer}
