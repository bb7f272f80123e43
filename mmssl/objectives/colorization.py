"""Colorization: the colours of a picture are told by the tokens of its lightness (Zhang et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.token_predictors import TokenPredictorConfig
from mmssl.losses.colours import colour_bins, rare_colour_weights, rgb_to_lab, soft_colours, soft_cross_entropy
from mmssl.losses.mae import patch_shape, patchify
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of
from mmssl.objectives.parts.one_view import OneViewOfTokens

GREY = 5.0
"""A picture whose a and b stay within this everywhere has no colours to tell."""


class ColorizationConfig(ObjectiveConfig):
    """Settings of colorization for one modality of pictures; see `ColorizationObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of view with colours, which the encoder sees the lightness of.
        patch_size: side of a token in pixels: that of the patches of a vit, 32 of a resnet of four stages.
        cell: side in pixels of the cells whose mean colour is told, a divisor of patch_size. The paper: 4.
        neighbours: number of bins of a soft label. The paper: 5; its code: 10.
        deviation: of soft labels, in units of a and b. The paper: 5.
        uniform: share of equal weights of all colours in their assumed shares; the lower, the more rare colours weigh. The paper:
            0.5. 1: all weigh the same.
        predictor: head of each token, not used after training: linear or bert.
    """

    kind: Literal["colorization"] = "colorization"
    modality: Name
    view: str
    patch_size: int = Field(ge=1)
    cell: int = Field(default=4, ge=1)
    neighbours: int = Field(default=5, ge=1, le=100)
    deviation: float = Field(default=5.0, gt=0)
    uniform: float = Field(default=0.5, gt=0, le=1)
    predictor: TokenPredictorConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> ColorizationObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: there is no encoder, it has no token grid of two axes, or cells do not tile the tokens.
        """
        encoder = encoder_of(encoders, self.modality)
        if encoder.grid is None or len(encoder.grid) != 2:
            raise ValueError(
                f"colorization needs an encoder of pictures for {self.modality!r} with a grid of rows and columns, and "
                f"{type(encoder).__name__} has {encoder.grid or 'none'}; use kind vit or resnet"
            )
        if self.patch_size % self.cell:
            raise ValueError(f"cell: got {self.cell}, wanted a divisor of patch_size {self.patch_size}")
        colours = (self.patch_size // self.cell) ** 2 * len(colour_bins())
        return ColorizationObjective(self, self.predictor.build(encoder.width, colours))


class ColorizationObjective(OneViewOfTokens):
    """Colorization: cross entropy of the bins of colours (a and b of CIELAB) of the cells of a picture, told by its lightness (L).

    Zhang et al. 2016 (arXiv:1603.08511), equations 2 to 4. Rare colours weigh more, by the shares of colours in the training
    samples so far. Pictures without colours cost nothing. Unlike there, cells have their mean colour, weights are part of the loss
    and not of its gradient alone, and bins are those that colours of 8 bits are rounded to. Pictures in colour are evaluated.

    Args:
        config: settings.
        head: token [B, T, D] -> scores [B, T, cells of a token * Q].

    Attributes:
        bins: [Q, 2].
        counts: [Q], number of pictures' worth of each colour so far; at the start one picture with all of them.
    """

    bins: Tensor
    counts: Tensor

    def __init__(self, config: ColorizationConfig, head: nn.Module) -> None:
        super().__init__(config.modality, config.view)
        self.patch, self.cell = config.patch_size, config.cell
        self.neighbours, self.deviation, self.uniform = config.neighbours, config.deviation, config.uniform
        self.head = head
        bins = colour_bins()
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("counts", torch.full((len(bins),), 1 / len(bins)))

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Weighted error [B] and hits [B] of each picture, and its shares of colours, as they are and weighted, [B, Q] each.

        Raises:
            ValueError: views are not pictures in colour, or tokens have another size than configured.
        """
        x, grid = batch.view(self.modality, f"{self.view}0"), ctx.encoders[self.modality].grid
        assert grid is not None, "checked at build"
        patch = patch_shape(x.shape, grid)
        if patch != (self.patch, self.patch) or x.shape[1] != 3:
            raise ValueError(
                f"colorization: got views {list(x.shape)} of {self.modality!r} with tokens of {patch} pixels, wanted [B, 3, H, W] "
                f"in tokens of patch_size {self.patch}"
            )
        with torch.no_grad():
            lab = rgb_to_lab(x.float() / 255 if x.dtype == torch.uint8 else at_least_float32(x))
            lightness = (lab[:, :1] / 100).clamp(0, 1).expand(-1, 3, -1, -1).contiguous()
            cells = F.avg_pool2d(lab[:, 1:], self.cell)
            ab = patchify(cells, [self.patch // self.cell] * 2).reshape(-1, 2)  # [B * N, 2], N cells of a picture
            places, weights = soft_colours(ab, self.bins, self.neighbours, self.deviation)
            coloured = (cells.abs() > GREY).flatten(1).any(1)
        changed = replace(batch, views={**batch.views, self.modality: {"lightness": lightness}})
        (features,) = ctx.features(changed, self.modality, ["lightness"])
        scores = at_least_float32(self.head(features.tokens)).reshape(len(ab), -1)
        weights = weights.to(scores.dtype)
        weight = rare_colour_weights(self.counts / self.counts.sum(), self.uniform)[places[:, 0]].to(scores.dtype)

        def of_pictures(x: Tensor) -> Tensor:
            """Mean over the cells of each picture, [B * N, ...] -> [B, ...]; 0 for pictures without colours."""
            means = x.view(len(batch), -1, *x.shape[1:]).mean(1)
            return means * coloured.view(-1, *[1] * (means.ndim - 1)).to(means.dtype)

        def shares(weights: Tensor) -> Tensor:
            each = weights.new_zeros(len(batch), len(self.bins))
            rows = places.view(len(batch), -1)
            found = each.scatter_add(1, rows, weights.reshape(len(batch), -1)) / (rows.shape[1] // self.neighbours)
            return found * coloured[:, None].to(found.dtype)

        return {
            "error": of_pictures(weight * soft_cross_entropy(scores, places, weights)),
            "hits": of_pictures((scores.argmax(-1) == places[:, 0]).to(scores.dtype)),
            "coloured": coloured,
            "colours": shares(weights),
            "weighted": shares(weights * weight[:, None]),
            **ctx.presence(batch, self.modality),
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: accuracy of the nearest bin, and the loss of the best guess that sees nothing."""
        present = Present(latents)
        here = {name: present.rows(x).detach() for name, x in latents.items() if name != "present"}

        def measure() -> dict[str, Tensor]:
            wanted, rows = distributed.sum_and_count(here["weighted"])
            hits, coloured = distributed.sum_and_count(here["hits"][here["coloured"]])
            guess = torch.special.entr(wanted / wanted.sum().clamp(min=1e-9)).sum()
            return {
                "accuracy": hits / coloured.clamp(min=1),
                "chance_loss": guess * wanted.sum() / rows.clamp(min=1),
            }

        return LossOutput({"colours": distributed.mean(present.rows(latents["error"]))}, measure)

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Count the colours of this step."""
        self.counts += distributed.total_detached(Present(latents).rows(latents["colours"]).sum(0)).to(self.counts)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Accuracy of the nearest bin."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
