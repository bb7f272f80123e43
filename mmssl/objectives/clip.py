"""CLIP: samples of paired modalities meet in one space, every other sample of the global batch is a negative."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Latents, LossOutput, Objective, Reduction, StepContext
from mmssl.heads.projection import HeadConfig, LinearProjectionConfig, MLPProjectionConfig
from mmssl.losses.info_nce import info_nce, info_nce_accuracy
from mmssl.losses.tiled_info_nce import tiled_info_nce
from mmssl.objectives.common import (
    Name,
    ObjectiveConfig,
    encoder_of,
    log_sum_exp_over_processes,
    precise,
    view_of,
)

Pair = tuple[str, str]

WHOLE_UP_TO = 4096
"""Global batch up to which the logits are held as one matrix, 64 MB of them, if the config leaves it open."""


def pair_name(pair: Pair) -> str:
    """How a pair is called in parameters, losses and weights: "first-second"."""
    return "-".join(pair)


class ClipConfig(ObjectiveConfig):
    """Contrastive alignment of pairs of modalities; see `Clip`.

    Attributes:
        pairs: which modalities are aligned, e.g. [[image, text]]; several pairs may share a modality, which is encoded once.
        views: modality -> kind of the view that is encoded, one for each modality of the pairs.
        embedding: E, size of the shared space.
        temperature: initial value; the logit scale starts at ln(1 / temperature). CLIP: 0.07.
        max_scale: largest value of 1 / temperature, kept after every step. CLIP: 100.
        weights: pair name ("first-second") -> factor of its loss; 1 where not given.
        heads: modality -> head into the shared space; CLIP's linear projection where not given.
        tiles: make the loss from tiles of its logits, in memory that grows with the batch and not with its square: true, false or
            rows of a tile; null: tiles for global batches above 4096. It moves rounding only.
    """

    kind: Literal["clip"] = "clip"
    pairs: tuple[tuple[Name, Name], ...] = Field(min_length=1)
    views: dict[str, str]
    embedding: int = Field(gt=0)
    temperature: float = Field(gt=0, le=1)
    max_scale: float = Field(default=100.0, gt=1)
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    heads: dict[str, HeadConfig] = Field(default_factory=dict)
    tiles: bool | Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _pairs_are_different(self) -> ClipConfig:
        seen: set[frozenset[str]] = set()
        for pair in self.pairs:
            if pair[0] == pair[1]:
                raise ValueError(
                    f"pairs: got {list(pair)}, wanted two different modalities; two views of one modality are for simclr"
                )
            if frozenset(pair) in seen:
                raise ValueError(
                    f"pairs: got {list(pair)} twice, and both directions belong to one pair: leave one out, or set its weight"
                )
            seen.add(frozenset(pair))
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> ClipConfig:
        modalities, names = modalities_of(self.pairs), [pair_name(pair) for pair in self.pairs]
        if set(self.views) != set(modalities):
            raise ValueError(
                f"views: got views for {sorted(self.views)}, wanted one for each modality of the pairs: {sorted(modalities)}"
            )
        if not set(self.heads) <= set(modalities):
            raise ValueError(
                f"heads: got heads for {sorted(self.heads)}, wanted modalities of the pairs: {sorted(modalities)}"
            )
        if not set(self.weights) <= set(names):
            raise ValueError(f"weights: got {sorted(self.weights)}, wanted names of pairs: {names}")
        return self

    @model_validator(mode="after")
    def _scale_is_in_range(self) -> ClipConfig:
        if 1 / self.temperature > self.max_scale:
            raise ValueError(
                f"temperature: got {self.temperature}, wanted at least 1 / max_scale = {1 / self.max_scale:g}"
            )
        return self

    @model_validator(mode="after")
    def _heads_work_sample_by_sample(self) -> ClipConfig:
        for modality, head in self.heads.items():
            if isinstance(head, MLPProjectionConfig) and head.norm == "batch":
                raise ValueError(
                    f"heads.{modality}: got norm: batch, wanted norm: layer or none: evaluators embed each sample alone"
                )
        return self

    def build(self, encoders: Mapping[str, Encoder]) -> Clip:
        """The objective for these encoders."""
        heads = {
            modality: self.heads.get(modality, LinearProjectionConfig()).build(
                encoder_of(encoders, modality).width, self.embedding
            )
            for modality in modalities_of(self.pairs)
        }
        return Clip(self.pairs, self.views, heads, self.temperature, self.max_scale, self.weights, self.tiles)


def modalities_of(pairs: Sequence[Pair]) -> list[str]:
    """Every modality of the pairs once, in the order in which they are first named."""
    return list(dict.fromkeys(modality for pair in pairs for modality in pair))


class Clip(Objective):
    """Symmetric InfoNCE over the global batch for each pair, with a learned temperature for each.

    Radford et al. 2021 (arXiv:2103.00020). The parameter is the logarithm of the logit scale, starts at ln(1 / temperature) and
    is held in [0, ln(max_scale)] after each optimizer step, not in the forward pass: there it would lose its gradient.

    Args:
        pairs: modalities to align.
        views: modality -> kind of view.
        heads: modality -> [B, D] -> [B, E]; the same modules that evaluators use.
        temperature: initial value for every pair.
        max_scale: upper bound of the scale.
        weights: pair name -> factor; 1 where not given.
        tiles: whether the loss is made from tiles, or of which size they are; None: where the global batch is large.
    """

    reduction = Reduction.GATHER

    def __init__(
        self,
        pairs: Sequence[Pair],
        views: Mapping[str, str],
        heads: Mapping[str, nn.Module],
        temperature: float,
        max_scale: float = 100.0,
        weights: Mapping[str, float] | None = None,
        tiles: bool | int | None = None,
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.views = dict(views)
        self.max_scale = max_scale
        self.tiles = tiles
        self.weights = {pair_name(pair): (weights or {}).get(pair_name(pair), 1.0) for pair in pairs}
        self.projections = nn.ModuleDict(dict(heads))
        self.logit_scale = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(-math.log(temperature))) for name in self.weights}
        )

    def needs(self) -> Needs:
        """One view of each modality."""
        return {modality: {self.views[modality]: 1} for modality in modalities_of(self.pairs)}

    def heads(self) -> Mapping[str, nn.Module]:
        """The projections, before normalisation."""
        return dict(self.projections.items())

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Unit-norm embeddings [B, E] in float32, by modality."""
        latents = {}
        for modality in modalities_of(self.pairs):
            pooled = ctx.encoders[modality](view_of(batch, modality, f"{self.views[modality]}0")).pooled
            latents[modality] = F.normalize(precise(self.projections[modality](pooled)), dim=-1)
        return latents

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One term for each pair; logs its scale, in-batch accuracy both ways, and the loss of guessing, ln(G)."""
        everyone = {modality: distributed.gather(latents[modality]) for modality in modalities_of(self.pairs)}
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        for first, second in self.pairs:
            name = pair_name((first, second))
            a, b, all_a, all_b = latents[first], latents[second], everyone[first], everyone[second]
            offset = distributed.rank() * len(a)
            scale = self.logit_scale[name].exp()
            loss = self._loss(a, b, scale, all_a, all_b, offset)
            there, back = info_nce_accuracy(a, b, all_a=all_a, all_b=all_b, offset=offset)
            terms[name] = self.weights[name] * loss
            metrics |= {
                f"{name}/scale": scale.detach(),
                f"{name}/{first}_to_{second}_accuracy": there,
                f"{name}/{second}_to_{first}_accuracy": back,
                f"{name}/chance_loss": torch.full_like(there, math.log(len(all_a))),
            }
        return LossOutput(terms, metrics)

    @torch.no_grad()
    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Keep each scale in [1, max_scale]."""
        for parameter in self.logit_scale.values():
            parameter.clamp_(0, math.log(self.max_scale))

    def _loss(self, a: Tensor, b: Tensor, scale: Tensor, all_a: Tensor, all_b: Tensor, offset: int) -> Tensor:
        tiles = len(all_b) > WHOLE_UP_TO if self.tiles is None else self.tiles
        if tiles is False:
            return info_nce(a, b, scale, all_a=all_a, all_b=all_b, offset=offset)
        size = None if tiles is True else tiles
        return tiled_info_nce(
            a, b, scale, all_b=all_b, offset=offset, over_processes=log_sum_exp_over_processes, size=size
        )
