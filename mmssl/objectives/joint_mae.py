"""Joint masked autoencoder of two modalities: each is predicted from what is seen of both, and both are contrasted (CAV-MAE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.decoders import MaskedTokenDecoderConfig
from mmssl.heads.joint_decoder import JointDecoder
from mmssl.losses.mae import masked_mean_square, normalise_patches
from mmssl.losses.one_way_info_nce import one_way_accuracy, one_way_info_nce
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of
from mmssl.objectives.parts.patches import prepared_patches


class JointMaeConfig(ObjectiveConfig):
    """Settings of a joint masked autoencoder of two modalities (CAV-MAE); see `JointMaeObjective`.

    Attributes:
        modalities: the two; their encoders have one width.
        views: modality -> kind of view that is masked and predicted.
        orders: modality -> kind of view with a random order [B, T] of its tokens; the first ones stay visible.
        patch_values: modality -> P, numbers in one patch of the prepared view.
        mask_ratio: share of masked tokens of each.
        joint_depth: joint blocks on the visible tokens of both. CAV-MAE: 1, behind 11 of each modality.
        joint_heads: attention heads of joint blocks.
        decoder: size of the one decoder of both.
        normalise_targets: predict patches normalised by their mean and standard deviation.
        contrast: weight of the contrast between the pooled features of the visible tokens. CAV-MAE: 0.01. 0: none, and no shared
            space.
        temperature: divisor of the cosines. CAV-MAE: 0.05.
    """

    kind: Literal["joint_mae"] = "joint_mae"
    modalities: tuple[Name, Name]
    views: dict[str, str]
    orders: dict[str, str]
    patch_values: dict[str, int]
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    joint_depth: int = Field(default=1, ge=1)
    joint_heads: int = Field(default=12, ge=1)
    decoder: MaskedTokenDecoderConfig = MaskedTokenDecoderConfig()
    normalise_targets: bool = True
    contrast: float = Field(default=0.01, ge=0)
    temperature: float = Field(default=0.05, gt=0)

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> JointMaeObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: settings of other modalities; an encoder is missing, has no token grid, or another width.
        """
        a, b = self.modalities
        for key in ("views", "orders", "patch_values"):
            if set(getattr(self, key)) != {a, b}:
                raise ValueError(
                    f"{key}: got {sorted(getattr(self, key))}, wanted one entry for each of {a!r} and {b!r}"
                )
        both = {name: encoder_of(encoders, name) for name in (a, b)}
        grids = {name: encoder.grid for name, encoder in both.items() if encoder.grid is not None}
        if missing := [name for name in both if name not in grids]:
            raise ValueError(
                f"joint_mae needs encoders with a token grid, and that of {missing[0]!r} ({type(both[missing[0]]).__name__}) has "
                "none; use transformers (kind vit, audio_transformer, series_transformer or space_time)"
            )
        if a == b or both[a].width != both[b].width:
            raise ValueError(
                f"joint_mae needs two encoders of one width, got {a!r} of {both[a].width} and {b!r} of {both[b].width}"
            )
        if both[a].width % self.joint_heads:
            raise ValueError(
                f"joint_heads: got {self.joint_heads}, wanted a divisor of the encoders' width {both[a].width}"
            )
        values = {name: self.patch_values[name] for name in (a, b)}
        decoder = JointDecoder(both[a].width, grids, values, self.joint_depth, self.joint_heads, self.decoder)
        return JointMaeObjective(self, decoder)


class JointMaeObjective(Objective):
    """Joint MAE: mean squared error of the masked patches of both modalities, and InfoNCE between them.

    Gong et al. 2023 (CAV-MAE, arXiv:2210.07839), equations 2 to 5. Encoders see the visible tokens only; joint blocks and one
    decoder see those of both, so that a hidden patch of one is told by the other, too. Unlike in the released code the contrast
    goes both ways, over the samples of all processes; and it reads the encoders' pooled features, which evaluators read, not the
    tokens behind the joint block.

    Args:
        config: settings.
        decoder: predicts all tokens of both from the visible ones.

    Raises:
        ValueError: the ratio masks all tokens or none.
    """

    least_samples = 2
    accepts_absent = True

    def __init__(self, config: JointMaeConfig, decoder: JointDecoder) -> None:
        super().__init__()
        self.modalities, self.views, self.orders = config.modalities, config.views, config.orders
        self.normalise_targets, self.weight, self.temperature = (
            config.normalise_targets,
            config.contrast,
            config.temperature,
        )
        self.reduction = Reduction.GATHER if self.weight else Reduction.LOCAL
        self.decoder = decoder
        self.visible = {}
        for name in self.modalities:
            tokens = decoder.tokens(name)
            self.visible[name] = tokens - round(config.mask_ratio * tokens)
            if not 0 < self.visible[name] < tokens:
                raise ValueError(
                    f"got mask_ratio {config.mask_ratio} for {tokens} tokens of {name!r}, which leaves {self.visible[name]} "
                    "visible; wanted at least one visible and one masked token"
                )

    def needs(self) -> Needs:
        """A view and an order of its tokens of each."""
        return {name: {self.views[name]: 1, self.orders[name]: 1} for name in self.modalities}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, and dropping tokens (mask_drop)."""
        return {name: frozenset({Encoder.TOKENS, Encoder.MASK_DROP}) for name in self.modalities}

    def heads(self) -> Mapping[str, nn.Module]:
        """Nothing is projected: the pooled features are the shared space, where there is a contrast."""
        return {name: nn.Identity() for name in self.modalities} if self.weight else {}

    def logit_scales(self) -> Mapping[tuple[str, str], Tensor]:
        """1 / temperature, where there is a contrast."""
        return {self.modalities: torch.tensor(1 / self.temperature)} if self.weight else {}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that token orders and patches match the encoders' token grids."""
        for name in self.modalities:
            self._order(batch, name, ctx.encoders[name])
            self._target(batch.view(name, f"{self.views[name]}0"), name, ctx.encoders[name])

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Of each modality: predictions and targets [B, T, P], the mask [B, T], and for the contrast pooled features [B, D].

        Raises:
            ValueError: an order has another number of tokens than the grid, or patches have another size than configured.
        """
        latents: dict[str, Tensor] = {}
        tokens, kept = {}, {}
        for name in self.modalities:
            order = self._order(batch, name, ctx.encoders[name])
            kept[name] = order[:, : self.visible[name]].sort(1).values
            (features,) = ctx.features(batch, name, [f"{self.views[name]}0"], keep=[kept[name]])
            assert features.tokens is not None
            tokens[name] = features.tokens
            if self.weight:
                latents[f"{name}/pooled"] = features.pooled
            latents[f"{name}/target"] = self._target(batch.view(name, f"{self.views[name]}0"), name, ctx.encoders[name])
            latents[f"{name}/mask"] = torch.ones_like(order, dtype=torch.bool).scatter(1, kept[name], False)
        found = self.decoder(tokens, kept)
        latents |= {f"{name}/prediction": at_least_float32(x) for name, x in found.items()}
        there = [x for name in self.modalities for x in ctx.presence(batch, name).values()]
        return latents | ({"present": torch.stack(there).all(0)} if there else {})

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """A term of each modality and of the contrast; metrics: losses of all-zero predictions, and accuracies of the contrast."""
        present = Present(latents, self.least_samples)
        rows = {name: present.rows(x) for name, x in latents.items() if name != "present"}
        terms, zeros = {}, {}
        for name in self.modalities:
            target, mask = rows[f"{name}/target"], rows[f"{name}/mask"]
            terms[name] = masked_mean_square(rows[f"{name}/prediction"], target, mask)
            zeros[name] = (torch.zeros_like(target), target, mask)
        ways = []
        if self.weight:
            a, b = (F.normalize(at_least_float32(rows[f"{name}/pooled"]), dim=-1) for name in self.modalities)
            ways = [(x, present.gather(y), present.offset(y)) for x, y in ((a, b), (b, a))]
            both = [one_way_info_nce(x, everyone, self.temperature, offset) for x, everyone, offset in ways]
            terms["contrast"] = self.weight * torch.stack(both).mean()
        seen = [(x.detach(), everyone.detach(), offset) for x, everyone, offset in ways]

        def measure() -> dict[str, Tensor]:
            found = {f"{name}/zero_loss": masked_mean_square(*given) for name, given in zeros.items()}
            for (one, other), way in zip((self.modalities, self.modalities[::-1]), seen, strict=False):
                found[f"{one}_to_{other}_accuracy"] = one_way_accuracy(*way)
                found["chance_loss"] = torch.full_like(
                    found[f"{one}_to_{other}_accuracy"], math.log(max(len(way[1]), 1))
                )
            return found

        return LossOutput(present.terms(terms), measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Losses of all-zero predictions, and the accuracy of the contrast."""
        a, b = self.modalities
        figures = {f"{name} zero loss": scalars[f"{name}/zero_loss"] for name in self.modalities}
        return Headline(figures=figures | ({"accuracy": scalars[f"{a}_to_{b}_accuracy"]} if self.weight else {}))

    def _order(self, batch: Batch, name: str, encoder: Encoder) -> Tensor:
        order = batch.view(name, f"{self.orders[name]}0")
        if order.ndim != 2 or order.shape[1] != self.decoder.tokens(name):
            raise ValueError(
                f"got token orders {list(order.shape)} from modalities.{name}.views.{self.orders[name]}, wanted "
                f"[B, {self.decoder.tokens(name)}] for the token grid {encoder.grid} of encoders.{name}: give the view the "
                "encoder's patches, or number of tokens"
            )
        return order

    @torch.no_grad()
    def _target(self, x: Tensor, name: str, encoder: Encoder) -> Tensor:
        patches = prepared_patches(encoder, x, self.decoder.values[name])
        return normalise_patches(patches) if self.normalise_targets else patches
