"""MAE: hide most tokens before the encoder, predict their content from the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mmssl.core.batch import Batch, Needs
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction, StepContext
from mmssl.heads.decoders import MaskedTokenDecoder, MaskedTokenDecoderConfig
from mmssl.losses.mae import masked_mean_square, normalise_patches, patch_shape, patchify
from mmssl.objectives.common import Name, ObjectiveConfig, encoder_of, precise, view_of


class MaeConfig(ObjectiveConfig):
    """Masked autoencoding of one modality; see `MaeObjective`.

    Attributes:
        modality: whose encoder is trained.
        view: kind of the view that is masked and predicted.
        order: kind of the view that draws a random order [B, T] of the tokens; the first ones stay visible.
        patch_values: P, numbers in one patch of the prepared view, e.g. 3 * 16 * 16 = 768.
        mask_ratio: share of the tokens that is hidden.
        decoder: its size.
        normalise_targets: predict patches less their mean over their standard deviation (the paper's better target).
    """

    kind: Literal["mae"] = "mae"
    modality: Name
    view: str
    order: str = "order"
    patch_values: int = Field(ge=2)
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    decoder: MaskedTokenDecoderConfig = MaskedTokenDecoderConfig()
    normalise_targets: bool = True

    def build(self, encoders: Mapping[str, Encoder]) -> MaeObjective:
        """The objective for these encoders.

        Raises:
            ValueError: no encoder, no token grid, or a ratio that hides all tokens or none.
        """
        encoder = encoder_of(encoders, self.modality)
        if encoder.grid is None:
            raise ValueError(
                f"mae needs an encoder for {self.modality!r} with a token grid, and {type(encoder).__name__} has none: "
                "take a vision transformer"
            )
        decoder = self.decoder.build(encoder.width, encoder.grid, self.patch_values)
        return MaeObjective(self.modality, self.view, self.order, decoder, self.mask_ratio, self.normalise_targets)


class MaeObjective(Objective):
    """Mean squared error of the hidden patches.

    He et al. 2022 (arXiv:2111.06377). The encoder sees the visible tokens only; a light decoder sees them in their places, and a
    learned token in all others. Masks are data: the order of tokens is a view, drawn for each sample, the same on any number of
    processes.

    Args:
        modality: whose encoder is trained.
        view: kind of the view.
        order: kind of the view with the token order.
        decoder: from visible tokens to predictions for all.
        mask_ratio: share of hidden tokens, rounded to whole tokens.
        normalise_targets: whether each patch is standardised.

    Raises:
        ValueError: the ratio hides all tokens or none.
    """

    reduction = Reduction.LOCAL

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
                "wanted at least one visible and one hidden"
            )

    def needs(self) -> Needs:
        """One view and one order of its tokens."""
        return {self.modality: {self.view: 1, self.order: 1}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Tokens, and dropping some of them."""
        return {self.modality: frozenset({Encoder.TOKENS, Encoder.MASK_DROP})}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """The order and the patches fit the encoder."""
        encoder = ctx.encoders[self.modality]
        self._order(batch, encoder)
        self._target(view_of(batch, self.modality, f"{self.view}0"), encoder)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Predictions and targets [B, T, P], and the mask [B, T] of hidden tokens.

        Raises:
            ValueError: the order is of another number of tokens than the grid, or patches are not as large as configured.
        """
        encoder = ctx.encoders[self.modality]
        x = view_of(batch, self.modality, f"{self.view}0")
        order = self._order(batch, encoder)
        keep = order[:, : self.visible].sort(1).values
        features = encoder(x, keep=keep)
        return {
            "prediction": self.decoder(features.pooled, features.tokens, keep),
            "target": self._target(x, encoder),
            "mask": torch.ones_like(order, dtype=torch.bool).scatter(1, keep, False),
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One term; logs what a prediction of zero would score, beside which the loss is to be read."""
        target, mask = latents["target"], latents["mask"]
        loss = masked_mean_square(latents["prediction"], target, mask)
        return LossOutput(
            {"reconstruction": loss},
            lambda: {"zero_loss": masked_mean_square(torch.zeros_like(target), target, mask)},
        )

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """What a prediction of zero would score."""
        return Headline(figures={"zero loss": scalars["zero_loss"]})

    def _order(self, batch: Batch, encoder: Encoder) -> Tensor:
        order = view_of(batch, self.modality, f"{self.order}0")
        if order.ndim != 2 or order.shape[1] != self.decoder.tokens:
            raise ValueError(
                f"got token orders {list(order.shape)} from modalities.{self.modality}.views.{self.order}, wanted "
                f"[B, {self.decoder.tokens}] for the token grid {encoder.grid} of encoders.{self.modality}: give the view the "
                "encoder's patches"
            )
        return order

    @torch.no_grad()
    def _target(self, x: Tensor, encoder: Encoder) -> Tensor:
        prepared = precise(encoder.prepare(x))
        assert encoder.grid is not None, "checked at build"
        patch = patch_shape(prepared.shape, encoder.grid)
        patches = patchify(prepared, patch)
        if patches.shape[2] != self.decoder.values:
            raise ValueError(
                f"patch_values: got {self.decoder.values}, wanted {patches.shape[2]}, the numbers in a patch of the prepared view "
                f"{self.view!r} of {self.modality!r}, {list(prepared.shape)} on the token grid {encoder.grid}"
            )
        return normalise_patches(patches) if self.normalise_targets else patches
