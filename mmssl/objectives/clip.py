"""CLIP and SigLIP: contrastive alignment of pairs of modalities; other samples of the global batch are negatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.heads.projection import HeadConfig, LinearProjectionConfig, MLPProjectionConfig
from mmssl.losses.info_nce import info_nce
from mmssl.losses.sigmoid import sigmoid_loss
from mmssl.losses.tiled_info_nce import tiled_info_nce
from mmssl.losses.tiled_sigmoid import tiled_sigmoid_loss
from mmssl.objectives.common import ObjectiveConfig, at_least_float32, encoder_of, log_sum_exp_over_processes
from mmssl.objectives.pair_metrics import pair_metrics
from mmssl.objectives.pairs import SIGMOID_BIAS, Pair, PairConfig, PairLoss, check_pairs, modalities_of
from mmssl.objectives.presence import content_hash, gather_facts, identities, presence

WHOLE_UP_TO = 2048
"""Largest global batch with the logits as one matrix (16 MB) where the config has tiles: null."""

Duplicates = Literal["negatives", "ignore"]


class ClipConfig(ObjectiveConfig):
    """Settings of CLIP or SigLIP over pairs of modalities; see `ClipObjective`.

    Attributes:
        pairs: which modalities are aligned, e.g. [[image, text], [image, audio]]. A pair may have its settings: {modalities:
            [audio, text], weight: 0.5, loss: sigmoid, temperature: 0.1, bias: -10}. A modality of several pairs is encoded once.
        views: modality -> kind of view to encode, one for each modality of the pairs.
        embedding: E, size of the shared space.
        loss: default loss of a pair: "info_nce" (CLIP) or "sigmoid" (SigLIP).
        temperature: initial value; the logit scale starts at ln(1 / temperature). CLIP: 0.07; SigLIP: 0.1.
        bias: initial logit bias of sigmoid losses; null: SigLIP's -10, for batches of about 20,000. For a batch of G: ln(1 / G).
        max_scale: upper bound of 1 / temperature, enforced after every step. CLIP: 100.
        shared_temperature: one temperature for all pairs instead of one for each.
        duplicates: repeated samples, or samples with equal tokens in a modality of the pair: "negatives" of each other, or "ignore"
            to leave them out.
        heads: modality -> projection head into the shared space; default: CLIP's linear projection.
        tiles: compute the loss from tiles of its logits, in memory linear in the batch instead of quadratic: true, false or rows of
            a tile; null: always for sigmoid, and for info_nce in global batches above 2048. It changes rounding only.
    """

    kind: Literal["clip"] = "clip"
    pairs: tuple[PairConfig, ...] = Field(min_length=1)
    views: dict[str, str]
    embedding: int = Field(gt=0)
    loss: PairLoss = "info_nce"
    temperature: float = Field(gt=0, le=1)
    bias: float | None = None
    max_scale: float = Field(default=100.0, gt=1)
    shared_temperature: bool = False
    duplicates: Duplicates = "negatives"
    heads: dict[str, HeadConfig] = Field(default_factory=dict)
    tiles: bool | Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _scale_is_in_range(self) -> ClipConfig:
        if 1 / self.temperature > self.max_scale:
            raise ValueError(
                f"temperature: got {self.temperature}, wanted at least 1 / max_scale = {1 / self.max_scale:g}"
            )
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> ClipConfig:
        check_pairs(self.pairs, self.loss, self.bias, self.max_scale, self.shared_temperature)
        modalities = modalities_of(self.resolved())
        if set(self.views) != set(modalities):
            raise ValueError(
                f"views: got views for {sorted(self.views)}, wanted one for each modality of the pairs: {sorted(modalities)}"
            )
        if not set(self.heads) <= set(modalities):
            raise ValueError(
                f"heads: got heads for {sorted(self.heads)}, wanted modalities of the pairs: {sorted(modalities)}"
            )
        return self

    @model_validator(mode="after")
    def _heads_work_sample_by_sample(self) -> ClipConfig:
        for modality, head in self.heads.items():
            if isinstance(head, MLPProjectionConfig) and head.norm == "batch":
                raise ValueError(
                    f"heads.{modality}: got norm: batch, wanted norm: layer or none, because evaluators embed each sample alone"
                )
        return self

    def resolved(self) -> tuple[Pair, ...]:
        """The pairs, with the objective's settings where they have none."""
        bias = SIGMOID_BIAS if self.bias is None else self.bias
        return tuple(
            Pair(
                *pair.modalities,
                temperature=pair.temperature or self.temperature,
                weight=pair.weight,
                loss=pair.loss or self.loss,
                bias=bias if pair.bias is None else pair.bias,
            )
            for pair in self.pairs
        )

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> ClipObjective:
        """Build the objective for these encoders."""
        pairs = self.resolved()
        heads = {
            modality: self.heads.get(modality, LinearProjectionConfig()).build(
                encoder_of(encoders, modality).width, self.embedding
            )
            for modality in modalities_of(pairs)
        }
        return ClipObjective(
            pairs,
            self.views,
            heads,
            max_scale=self.max_scale,
            shared_temperature=self.shared_temperature,
            duplicates=self.duplicates,
            tiles=self.tiles,
        )


class ClipObjective(Objective):
    """CLIP or SigLIP loss over the global batch: the weighted sum over pairs of `info_nce` or `sigmoid_loss`.

    Radford et al. 2021 (arXiv:2103.00020), Zhai et al. 2023 (arXiv:2303.15343). No term depends on the number of pairs. In each
    pair, samples that lack one of the two modalities are neither rows nor candidates; the mean is over the samples of the global
    batch that have both, and 0 if there are none.

    The parameter of a temperature is the logarithm of the logit scale. It starts at ln(1 / temperature) and is clamped to
    [0, ln(max_scale)] after each optimizer step, not in the forward pass, where clamping would remove its gradient.

    Args:
        pairs: the pairs of modalities, with their settings.
        views: modality -> kind of view.
        heads: modality -> projection [B, D] -> [B, E]; evaluators use the same modules.
        max_scale: upper bound of the scale.
        shared_temperature: one parameter for all pairs, initialised with the first pair's temperature.
        duplicates: "negatives", or "ignore" to leave repeated samples out of the negatives.
        tiles: whether losses are computed from tiles, or their size; None: for sigmoid losses and large batches.
    """

    reduction = Reduction.GATHER
    least_samples = 2
    accepts_absent = True

    def __init__(
        self,
        pairs: Sequence[Pair],
        views: Mapping[str, str],
        heads: Mapping[str, nn.Module],
        *,
        max_scale: float = 100.0,
        shared_temperature: bool = False,
        duplicates: Duplicates = "negatives",
        tiles: bool | int | None = None,
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.views = dict(views)
        self.max_scale = max_scale
        self.duplicates = duplicates
        self.tiles = tiles
        self.projections = nn.ModuleDict(dict(heads))
        self.scale_names = {pair.name: "all" if shared_temperature else pair.name for pair in pairs}
        starts = {self.scale_names[pair.name]: pair.temperature for pair in reversed(pairs)}
        self.logit_scale = nn.ParameterDict(
            {
                name: nn.Parameter(torch.tensor(-math.log(starts[name])))
                for name in dict.fromkeys(self.scale_names.values())
            }
        )
        self.logit_bias = nn.ParameterDict(
            {pair.name: nn.Parameter(torch.tensor(pair.bias)) for pair in pairs if pair.loss == "sigmoid"}
        )

    def needs(self) -> Needs:
        """One view of each modality."""
        return {modality: {self.views[modality]: 1} for modality in modalities_of(self.pairs)}

    def heads(self) -> Mapping[str, nn.Module]:
        """The projections, before normalisation."""
        return dict(self.projections.items())

    def logit_scales(self) -> Mapping[tuple[str, str], Tensor]:
        """Logit scale (1 / temperature) of each pair."""
        return {(p.first, p.second): self.logit_scale[self.scale_names[p.name]].exp() for p in self.pairs}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Unit-norm embeddings [B, E] float32 by modality, zero where absent, and "present/..." [B] bool.

        Also "sample/index" [B] and, of integer views (token ids), "content/..." [B], by which duplicates are known.
        """
        latents: Latents = {"sample/index": batch.index}
        for modality in modalities_of(self.pairs):
            view = f"{self.views[modality]}0"
            x, here = batch.view(modality, view), presence(batch, modality)
            (features,) = ctx.features(batch, modality, [view], pooled_only=True)
            embedded = F.normalize(at_least_float32(self.projections[modality](features.pooled)), dim=-1)
            latents[modality] = embedded.masked_fill(~here[:, None], 0) if modality in batch.present else embedded
            latents[f"present/{modality}"] = here
            if x.dtype == torch.int64:
                latents[f"content/{modality}"] = content_hash(x)
        return latents

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term for each pair.

        Metrics: see `pair_metrics`.
        """
        everyone = {modality: distributed.gather(latents[modality]) for modality in modalities_of(self.pairs)}
        facts = gather_facts(latents)
        terms: dict[str, Tensor] = {}
        measures: list[Callable[[], dict[str, Tensor]]] = []
        for pair in self.pairs:
            a, b = latents[pair.first], latents[pair.second]
            all_a, all_b = everyone[pair.first], everyone[pair.second]
            ids = identities(facts, pair)
            scale, bias = self.logit_scale[self.scale_names[pair.name]].exp(), self.logit_bias.get(pair.name)
            among: dict[str, Any] = {
                "offset": distributed.rank() * len(a),
                "present": facts[f"present/{pair.first}"].bool() & facts[f"present/{pair.second}"].bool(),
                "ids": ids if self.duplicates == "ignore" else None,
            }
            terms[pair.name] = pair.weight * self._loss(scale, bias, a, b, all_a, all_b, among)
            # The bias is copied: the update changes it in place.
            bias = None if bias is None else bias.detach().clone()
            everything = {"all_a": all_a.detach(), "all_b": all_b.detach(), **among}
            scales = scale.detach(), torch.full_like(scale.detach(), self.max_scale), bias
            measures.append(partial(pair_metrics, pair, scales, a.detach(), b.detach(), everything, ids))
        return LossOutput(terms, lambda: {name: x for measure in measures for name, x in measure().items()})

    def monitored(self) -> Mapping[str, str]:
        """The embeddings of every modality."""
        return {modality: modality for modality in modalities_of(self.pairs)}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """In-batch accuracy: both directions of a single pair; for several pairs the mean of both directions of each."""
        ways = {
            pair: (f"{pair.first}_to_{pair.second}_accuracy", f"{pair.second}_to_{pair.first}_accuracy")
            for pair in self.pairs
        }
        found = {pair: [scalars[f"{pair.name}/{name}"] for name in names] for pair, names in ways.items()}
        if len(self.pairs) == 1:
            figures = dict(
                zip((name.replace("_", " ") for name in ways[self.pairs[0]]), found[self.pairs[0]], strict=True)
            )
        else:
            figures = {f"{pair.first}, {pair.second} accuracy": sum(both) / 2 for pair, both in found.items()}
        chance = sum(pair.weight * scalars[f"{pair.name}/chance_loss"] for pair in self.pairs)
        return Headline(chance, figures)

    @torch.no_grad()
    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Clamp each logit scale to [1, max_scale]."""
        for parameter in self.logit_scale.values():
            parameter.clamp_(0, math.log(self.max_scale))

    def _loss(
        self,
        scale: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        all_a: Tensor,
        all_b: Tensor,
        among: dict[str, Any],
    ) -> Tensor:
        """Loss of one pair: sigmoid if it has a bias, else InfoNCE."""
        tiles = self.tiles
        if tiles is None:
            tiles = bias is not None or len(all_b) > WHOLE_UP_TO
        size = None if tiles is True else tiles
        if bias is not None:
            if tiles is False:
                return sigmoid_loss(a, b, scale, bias, all_b=all_b, **among)
            return tiled_sigmoid_loss(a, b, scale, bias, all_b=all_b, size=size, **among)
        if tiles is False:
            return info_nce(a, b, scale, all_a=all_a, all_b=all_b, **among)
        join = log_sum_exp_over_processes
        return tiled_info_nce(a, b, scale, all_b=all_b, over_processes=join, size=size, **among)
