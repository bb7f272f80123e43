"""Denoising autoencoder, and prediction of the noise, as in diffusion models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.encoders.spectrogram import FULL_SCALE
from mmssl.heads.token_predictors import TokenPredictorConfig
from mmssl.losses.mae import masked_mean_square, patch_shape, patchify
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of
from mmssl.objectives.parts.noises import Noise, NoiseConfig, ZeroNoise
from mmssl.objectives.parts.one_view import OneViewOfTokens
from mmssl.objectives.parts.patches import check_token_values, prepared_patches

DenoiseTarget = Literal["clean", "noise"]


class DenoiseConfig(ObjectiveConfig):
    """Settings of a denoising objective of one modality; see `DenoiseObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of view that noise is added to.
        noise: gaussian, zeros, or diffusion, whose level is drawn.
        target: "clean": patches of the prepared view without noise; "noise": the normal noise itself, of views that the encoder's
            token grid tiles (pictures, arrays, clips, series; no sounds).
        patch_values: P, numbers in one patch, e.g. 3 * 16 * 16 = 768.
        predictor: head of each token, not used after training: linear or bert.
    """

    kind: Literal["denoise"] = "denoise"
    modality: Name
    view: str
    noise: NoiseConfig
    target: DenoiseTarget = "clean"
    patch_values: int = Field(ge=1)
    predictor: TokenPredictorConfig

    @model_validator(mode="after")
    def _there_is_noise(self) -> Self:
        if self.target == "noise" and isinstance(self.noise, ZeroNoise):
            raise ValueError(
                "got target: noise with noise zeros, which adds none; use gaussian or diffusion, or target: clean"
            )
        return self

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> DenoiseObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: there is no encoder, or it has no token grid.
        """
        encoder = encoder_of(encoders, self.modality)
        if encoder.grid is None:
            raise ValueError(
                f"denoise needs an encoder for {self.modality!r} with a token grid, and {type(encoder).__name__} has none; use a "
                "transformer (kind vit, audio_transformer, series_transformer or space_time)"
            )
        head = self.predictor.build(encoder.width, self.patch_values)
        return DenoiseObjective(self.modality, self.view, self.noise, self.target, self.patch_values, head)


class DenoiseObjective(OneViewOfTokens):
    """Denoising: mean squared error of what the tokens of a noisy view tell of the clean view, or of the noise.

    Vincent et al. 2010 (JMLR 11, "Stacked Denoising Autoencoders"); Ho et al. 2020 (arXiv:2006.11239, equation 14) for
    the noise, as representation learning: Xiang et al. 2023 (arXiv:2303.09769). Noise is added on the device, and is a function
    of seed, step and sample. Evaluators encode views without noise.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that noise is added to.
        noise: changes it.
        target: what is predicted.
        values: P.
        head: token [B, T, D] -> [B, T, P].
    """

    def __init__(
        self, modality: str, view: str, noise: Noise, target: DenoiseTarget, values: int, head: nn.Module
    ) -> None:
        super().__init__(modality, view)
        self.noise, self.target, self.values = noise, target, values
        self.head = head

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Predictions, targets, and patches of the prepared noisy view ("noisy"), [B, T, P] each.

        Raises:
            ValueError: views are whole numbers other than pixels and sounds, or patches have another size than configured.
        """
        encoder = ctx.encoders[self.modality]
        clean = _floats(batch.view(self.modality, f"{self.view}0"), self.modality)
        seed = ctx.generator("denoise").initial_seed()
        noisy, noise = self.noise.add(clean, batch.index, seed)
        changed = replace(batch, views={**batch.views, self.modality: {"noisy": noisy}})
        (features,) = ctx.features(changed, self.modality, ["noisy"])
        latents: Latents = {"prediction": at_least_float32(self.head(features.tokens))}
        if self.target == "noise":
            assert noise is not None, "checked in the config"
            assert encoder.grid is not None, "checked at build"
            noise = (
                noise.transpose(1, 2) if noise.ndim == 5 else noise
            )  # clips [B, T, C, H, W], as encoders prepare them
            latents["target"] = patchify(noise, patch_shape(noise.shape, encoder.grid))
            check_token_values("patch_values", self.values, latents["target"], noise, encoder)
        else:
            latents["target"] = prepared_patches(encoder, clean, self.values)
            latents["noisy"] = prepared_patches(encoder, noisy, self.values)
        return {**latents, **ctx.presence(batch, self.modality)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; the metric untouched_loss is that of the noisy view taken as clean, or of no noise."""
        present = Present(latents)
        target = present.rows(latents["target"])
        untouched = present.rows(latents["noisy"]) if "noisy" in latents else torch.zeros_like(target)
        everywhere = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
        loss = masked_mean_square(present.rows(latents["prediction"]), target, everywhere)
        return LossOutput(
            {"denoising": loss}, lambda: {"untouched_loss": masked_mean_square(untouched, target, everywhere)}
        )

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Loss of leaving the view as it is."""
        return Headline(figures={"untouched loss": scalars["untouched_loss"]})


def _floats(x: Tensor, modality: str) -> Tensor:
    whole = {torch.uint8: 255, torch.int16: FULL_SCALE}.get(x.dtype)  # pixels and sounds
    if whole is None and not x.is_floating_point():
        raise ValueError(
            f"denoise: got {x.dtype} views of {modality!r}, wanted pixels, sounds or floats: noise is added to them"
        )
    return x if whole is None else x.float() / whole
