"""CLIP, SigLIP and LeVLJEPA: alignment of pairs of modalities, against negatives of the global batch or by prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

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
from mmssl.objectives.common import ObjectiveConfig, at_least_float32, encoder_of
from mmssl.objectives.parts.contrast import TileSetting, contrastive_loss
from mmssl.objectives.parts.hard_negatives import (
    HARD,
    gather_negatives,
    hard_accuracy,
    kinds_of_negatives,
    negative_latents,
)
from mmssl.objectives.parts.pair_metrics import pair_headline, pair_metrics
from mmssl.objectives.parts.pairs import (
    SIGMOID_BIAS,
    Pair,
    PairConfig,
    PairLoss,
    check_pairs,
    modalities_of,
    pair_negatives,
)
from mmssl.objectives.parts.prediction import RAW, PredictionConfig, PredictivePairs
from mmssl.objectives.parts.presence import content_hash, gather_facts, identities, presence

DuplicateRule = Literal["negatives", "ignore"]


class ClipConfig(ObjectiveConfig):
    """Settings of CLIP, SigLIP or LeVLJEPA over pairs of modalities; see `ClipObjective`.

    Attributes:
        pairs: which modalities are aligned, e.g. [[image, text], [image, audio]]. A pair may have its settings: {modalities:
            [audio, text], weight: 0.5, loss: sigmoid, temperature: 0.1, bias: -10}. A modality of several pairs is encoded once.
        views: modality -> kind of view to encode, one for each modality of the pairs.
        embedding: E, size of the shared space.
        loss: default loss of a pair: "info_nce" (CLIP), "sigmoid" (SigLIP) or "predictive" (LeVLJEPA).
        temperature: initial value; the logit scale starts at ln(1 / temperature). CLIP: 0.07; SigLIP: 0.1. Contrastive losses only.
        bias: initial logit bias of sigmoid losses; null: SigLIP's -10, for batches of about 20,000. For a batch of G: ln(1 / G).
        max_scale: upper bound of 1 / temperature, enforced after every step. CLIP: 100.
        shared_temperature: one temperature for all pairs instead of one for each.
        duplicates: repeated samples, or samples with equal tokens in a modality of the pair: "negatives" of each other, or "ignore"
            to leave them out.
        negatives: modality -> kinds of views with hard negatives, such as false captions ({text: [hard]}): for all samples of the
            global batch further candidates of InfoNCE (NegCLIP), and further negative pairs of sigmoid losses, except where they
            equal the sample's positive.
        heads: modality -> projection head into the shared space; default: CLIP's linear projection.
        tiles: compute the loss from tiles of its logits, in memory linear in the batch: true, false or rows of a tile; tf32x3: a
            GPU multiplies them as three TF32 products, near float32's error; null: for sigmoid, and above 2048 samples (GPU: 8192).
        prediction: predictors and SIGReg of predictive pairs.
    """

    kind: Literal["clip"] = "clip"
    pairs: tuple[PairConfig, ...] = Field(min_length=1)
    views: dict[str, str]
    embedding: int = Field(gt=0)
    loss: PairLoss = "info_nce"
    temperature: float | None = Field(default=None, gt=0, le=1)
    bias: float | None = None
    max_scale: float = Field(default=100.0, gt=1)
    shared_temperature: bool = False
    duplicates: DuplicateRule = "negatives"
    negatives: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    heads: dict[str, HeadConfig] = Field(default_factory=dict)
    tiles: TileSetting = None
    prediction: PredictionConfig | None = None

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> ClipConfig:
        losses = {pair.loss or self.loss for pair in self.pairs}
        if losses == {"predictive"}:
            for name in ("temperature", "max_scale", "shared_temperature", "duplicates", "tiles"):
                if (value := getattr(self, name)) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name}: got {value!r}, and no pair has a contrastive loss, which it is for; leave it out"
                    )
        elif self.temperature is None:
            raise ValueError("temperature: got none, wanted the initial value for contrastive losses, e.g. 0.07")
        elif 1 / self.temperature > self.max_scale:
            raise ValueError(
                f"temperature: got {self.temperature}, wanted at least 1 / max_scale = {1 / self.max_scale:g}"
            )
        if "predictive" in losses and self.prediction is None:
            raise ValueError(
                "prediction: got none, and a pair has loss: predictive; give its predictor and sigreg_weight"
            )
        if "predictive" not in losses and self.prediction is not None:
            raise ValueError(
                "prediction: got settings, and no pair has loss: predictive; set it, or leave prediction out"
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
        heads = {f"heads.{modality}": head for modality, head in self.heads.items()}
        if self.prediction is not None:
            heads["prediction.predictor"] = self.prediction.predictor
            self.prediction.check([pair for pair in self.resolved() if pair.loss == "predictive"])
        for where, head in heads.items():
            if isinstance(head, MLPProjectionConfig) and head.norm == "batch":
                raise ValueError(
                    f"{where}: got norm: batch, wanted norm: layer or none, because evaluators embed each sample alone"
                )
        return self

    def resolved(self) -> tuple[Pair, ...]:
        """The pairs, with the objective's settings where they have none."""
        bias = SIGMOID_BIAS if self.bias is None else self.bias
        negatives = pair_negatives(self.pairs, self.loss, self.views, self.negatives)
        return tuple(
            Pair(
                *pair.modalities,
                temperature=pair.temperature or self.temperature or 1.0,
                weight=pair.weight,
                loss=pair.loss or self.loss,
                bias=bias if pair.bias is None else pair.bias,
                negatives=hard,
            )
            for pair, hard in zip(self.pairs, negatives, strict=True)
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
        predictive = [pair for pair in pairs if pair.loss == "predictive"]
        return ClipObjective(
            pairs,
            self.views,
            heads,
            max_scale=self.max_scale,
            shared_temperature=self.shared_temperature,
            duplicates=self.duplicates,
            tiles=self.tiles,
            prediction=self.prediction.build(predictive, self.embedding) if self.prediction else None,
        )


class ClipObjective(Objective):
    """CLIP, SigLIP or LeVLJEPA over the global batch: the weighted sum over pairs of `info_nce`, `sigmoid_loss` or prediction.

    Radford et al. 2021 (arXiv:2103.00020), Zhai et al. 2023 (arXiv:2303.15343); prediction: see `PredictivePairs`. No term depends
    on the number of pairs. In each pair, samples that lack one of the two modalities are neither rows nor candidates; the mean is
    over the samples of the global batch that have both, and 0 if there are none.

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
        prediction: the loss of the predictive pairs; None: there are none.
    """

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
        duplicates: DuplicateRule = "negatives",
        tiles: TileSetting = None,
        prediction: PredictivePairs | None = None,
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.prediction = PredictivePairs() if prediction is None else prediction
        self.reduction = Reduction.STATISTIC if self.prediction.pairs else Reduction.GATHER
        self.views = dict(views)
        self.negatives = kinds_of_negatives(pairs)
        self.max_scale = max_scale
        self.duplicates = duplicates
        self.tiles = tiles
        self.projections = nn.ModuleDict(dict(heads))
        self.scale_names = {pair.name: "all" if shared_temperature else pair.name for pair in self.contrastive()}
        starts = {self.scale_names[pair.name]: pair.temperature for pair in reversed(self.contrastive())}
        self.logit_scale = nn.ParameterDict(
            {
                name: nn.Parameter(torch.tensor(-math.log(starts[name])))
                for name in dict.fromkeys(self.scale_names.values())
            }
        )
        self.logit_bias = nn.ParameterDict(
            {pair.name: nn.Parameter(torch.tensor(pair.bias)) for pair in pairs if pair.loss == "sigmoid"}
        )

    def contrastive(self) -> tuple[Pair, ...]:
        """The pairs with a contrastive loss."""
        return tuple(pair for pair in self.pairs if pair.loss != "predictive")

    def needs(self) -> Needs:
        """One view of each modality, and one of each kind of its hard negatives."""
        return {
            modality: dict.fromkeys((self.views[modality], *self.negatives.get(modality, ())), 1)
            for modality in modalities_of(self.pairs)
        }

    def heads(self) -> Mapping[str, nn.Module]:
        """The projections, before normalisation; with predictive pairs their outputs in the spaces of all modalities."""
        return self.prediction.heads(dict(self.projections.items()), self.contrastive())

    def logit_scales(self) -> Mapping[tuple[str, str], Tensor]:
        """Logit scale (1 / temperature) of each contrastive pair."""
        return {(p.first, p.second): self.logit_scale[self.scale_names[p.name]].exp() for p in self.contrastive()}

    def logit_biases(self) -> Mapping[tuple[str, str], Tensor]:
        """Logit bias of each pair with the sigmoid loss."""
        return {(p.first, p.second): self.logit_bias[p.name] for p in self.pairs if p.name in self.logit_bias}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Unit-norm embeddings [B, E] float32 by modality, zero where absent, and "present/..." [B] bool.

        Those of predictive pairs, before normalisation, are "raw/...". Also "sample/index" [B] and, of integer views (token ids),
        "content/..." [B], by which duplicates are known; of hard negatives, see `negative_latents`.
        """
        latents: Latents = {"sample/index": batch.index}
        contrasted = modalities_of(self.contrastive())
        for modality in modalities_of(self.pairs):
            view = f"{self.views[modality]}0"
            x, here = batch.view(modality, view), presence(batch, modality)
            kinds = self.negatives.get(modality, ())
            features = ctx.features(batch, modality, [view, *(f"{kind}0" for kind in kinds)], pooled_only=True)
            embedded, *hard = (at_least_float32(self.projections[modality](x.pooled)) for x in features)
            latents |= negative_latents(batch, modality, self.views[modality], dict(zip(kinds, hard, strict=True)))
            embedded = embedded.masked_fill(~here[:, None], 0) if modality in batch.present else embedded
            latents |= {modality: F.normalize(embedded, dim=-1)} if modality in contrasted else {}
            latents |= {f"{RAW}/{modality}": embedded} if modality in self.prediction.modalities else {}
            latents[f"present/{modality}"] = here
            if x.dtype == torch.int64:
                latents[f"content/{modality}"] = content_hash(x)
        return latents

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term for each pair.

        Metrics: see `pair_metrics`, and `PredictivePairs.criterion`.
        """
        predicted = self.prediction.criterion(latents, ctx)
        gathered = [*modalities_of(self.contrastive()), *(name for name in latents if name.startswith(f"{HARD}/"))]
        everyone = {name: distributed.gather(latents[name]) for name in gathered}
        facts = gather_facts(latents)
        terms = dict(predicted.terms)
        measures: list[Callable[[], Mapping[str, Tensor]]] = [predicted.measure]
        for pair in self.contrastive():
            a, b = latents[pair.first], latents[pair.second]
            all_a, all_b = everyone[pair.first], everyone[pair.second]
            ids = identities(facts, pair)
            scale, bias = self.logit_scale[self.scale_names[pair.name]].exp(), self.logit_bias.get(pair.name)
            present = facts[f"present/{pair.first}"].bool() & facts[f"present/{pair.second}"].bool()
            among: dict[str, Any] = {
                "offset": distributed.rank() * len(a),
                "present": present if ctx.optional & {pair.first, pair.second} else None,
                "ids": ids if self.duplicates == "ignore" else None,
            }
            hard = gather_negatives(latents, facts, pair, everyone, among["offset"])
            terms[pair.name] = pair.weight * contrastive_loss(a, b, all_a, all_b, scale, bias, among, self.tiles, hard)
            # The bias is copied: the update changes it in place.
            bias = None if bias is None else bias.detach().clone()
            everything = {"all_a": all_a.detach(), "all_b": all_b.detach(), **among}
            scales = scale.detach(), torch.full_like(scale.detach(), self.max_scale), bias
            detached = {name: negatives.detach() for name, negatives in hard.items()}
            measures.append(partial(pair_metrics, pair, scales, a.detach(), b.detach(), everything, ids, detached))
            measures.append(
                partial(hard_accuracy, {n: latents[n].detach() for n in gathered}, facts, pair, among["offset"])
            )
        return LossOutput(terms, lambda: {name: x for measure in measures for name, x in measure().items()})

    def monitored(self) -> Mapping[str, str]:
        """The embeddings of every modality."""
        raw = self.prediction.modalities
        return {
            modality: f"{RAW}/{modality}" if modality in raw else modality for modality in modalities_of(self.pairs)
        }

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """See `pair_headline`."""
        return pair_headline(self.pairs, scalars)

    @torch.no_grad()
    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Clamp each logit scale to [1, max_scale]."""
        for parameter in self.logit_scale.values():
            parameter.clamp_(0, math.log(self.max_scale))
