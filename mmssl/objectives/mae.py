"""MAE, masked autoencoder: drop most tokens before the encoder, and predict them from the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.decoders import MaskedTokenDecoder, MaskedTokenDecoderConfig
from mmssl.losses.mae import masked_mean_square, normalise_patches
from mmssl.objectives.common import Name, ObjectiveConfig, encoder_of
from mmssl.objectives.parts.patches import prepared_patches


class MaeConfig(ObjectiveConfig):
    """Settings of a masked autoencoder (MAE) of one modality; see `MaeObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of view that is masked and predicted.
        order: kind of view with a random order [B, T] of the tokens; the first ones stay visible.
        patch_values: P, numbers in one patch of the prepared view, e.g. 3 * 16 * 16 = 768.
        mask_ratio: share of masked tokens.
        decoder: size of the decoder.
        normalise_targets: predict patches normalised by their mean and standard deviation (better in the paper).
    """

    kind: Literal["mae"] = "mae"
    modality: Name
    view: str
    order: str = "order"
    patch_values: int = Field(ge=2)
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    decoder: MaskedTokenDecoderConfig = MaskedTokenDecoderConfig()
    normalise_targets: bool = True

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> MaeObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: there is no encoder, it has no token grid, or the ratio masks all tokens or none.
        """
        encoder = encoder_of(encoders, self.modality)
        if encoder.grid is None:
            raise ValueError(
                f"mae needs an encoder for {self.modality!r} with a token grid, and {type(encoder).__name__} has none; "
                "use a transformer (kind vit, audio_transformer, series_transformer or space_time)"
            )
        decoder = self.decoder.build(encoder.width, encoder.grid, self.patch_values)
        return MaeObjective(self.modality, self.view, self.order, decoder, self.mask_ratio, self.normalise_targets)


class MaeObjective(Objective):
    """MAE: mean squared error of the masked patches.

    He et al. 2022 (arXiv:2111.06377). The encoder sees the visible tokens only. A light decoder sees them at their positions, and a
    learned mask token at all others. Masks are data: the order of tokens is a view, drawn for each sample, equal on any number
    of processes.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that is masked and predicted.
        order: kind of view with the token order.
        decoder: predicts all tokens from the visible ones.
        mask_ratio: share of masked tokens, rounded to whole tokens.
        normalise_targets: whether target patches are normalised.

    Raises:
        ValueError: the ratio masks all tokens or none.
    """

    reduction = Reduction.LOCAL
    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: str,
        order: str,
        decoder: MaskedTokenDecoder,
        mask_ratio: float,
        normalise_targets: bool,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.order = modality, view, order
        self.decoder = decoder
        self.normalise_targets = normalise_targets
        self.visible = decoder.tokens - round(mask_ratio * decoder.tokens)
        if not 0 < self.visible < decoder.tokens:
            raise ValueError(
                f"got mask_ratio {mask_ratio} for {decoder.tokens} tokens, which leaves {self.visible} visible; "
                "wanted at least one visible and one masked token"
            )

    def needs(self) -> Needs:
        """One view and one order of its tokens."""
        return {self.modality: {self.view: 1, self.order: 1}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, and dropping tokens (mask_drop)."""
        return {self.modality: frozenset({Encoder.TOKENS, Encoder.MASK_DROP})}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that token order and patches match the encoder's token grid."""
        encoder = ctx.encoders[self.modality]
        self._order(batch, encoder)
        self._target(batch.view(self.modality, f"{self.view}0"), encoder)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Predictions and targets [B, T, P], and the mask [B, T], True for masked tokens.

        Raises:
            ValueError: the order has another number of tokens than the grid, or patches have another size than configured.
        """
        encoder = ctx.encoders[self.modality]
        x = batch.view(self.modality, f"{self.view}0")
        order = self._order(batch, encoder)
        keep = order[:, : self.visible].sort(1).values
        (features,) = ctx.features(batch, self.modality, [f"{self.view}0"], keep=[keep])
        return {
            "prediction": self.decoder(features.pooled, features.tokens, keep),
            "target": self._target(x, encoder),
            "mask": torch.ones_like(order, dtype=torch.bool).scatter(1, keep, False),
            **ctx.presence(batch, self.modality),
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; the metric zero_loss is the loss of an all-zero prediction, for comparison."""
        present = Present(latents)
        target, mask = present.rows(latents["target"]), present.rows(latents["mask"])
        loss = masked_mean_square(present.rows(latents["prediction"]), target, mask)
        return LossOutput(
            {"reconstruction": loss},
            lambda: {"zero_loss": masked_mean_square(torch.zeros_like(target), target, mask)},
        )

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Loss of an all-zero prediction."""
        return Headline(figures={"zero loss": scalars["zero_loss"]})

    def _order(self, batch: Batch, encoder: Encoder) -> Tensor:
        order = batch.view(self.modality, f"{self.order}0")
        if order.ndim != 2 or order.shape[1] != self.decoder.tokens:
            raise ValueError(
                f"got token orders {list(order.shape)} from modalities.{self.modality}.views.{self.order}, wanted "
                f"[B, {self.decoder.tokens}] for the token grid {encoder.grid} of encoders.{self.modality}: give the view the "
                "encoder's patches, or number of tokens"
            )
        return order

    @torch.no_grad()
    def _target(self, x: Tensor, encoder: Encoder) -> Tensor:
        patches = prepared_patches(encoder, x, self.decoder.values)
        return normalise_patches(patches) if self.normalise_targets else patches
