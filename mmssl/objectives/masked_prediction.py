"""Masked prediction of fixed targets: BERT's masked language modelling, BEiT-like codes, MaskFeat, HuBERT."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.places_predictors import PlacesPredictor, PlacesPredictorConfig
from mmssl.heads.token_predictors import TokenPredictorConfig
from mmssl.losses.masked_tokens import Mean, class_shares, masked_cross_entropy, mean_of_errors, token_means
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of, equal_count
from mmssl.objectives.parts.fixed_targets import FixedTargets, FixedTargetsConfig
from mmssl.objectives.parts.noises import normal_noise
from mmssl.objectives.parts.presence import mixed_bits, zero_absent


class MaskedPredictionConfig(ObjectiveConfig):
    """Settings of masked prediction of fixed targets for one modality; see `MaskedPredictionObjective`.

    Attributes:
        modality: modality of the encoder to train, a transformer; of texts, one that is not causal.
        view: kind of view that is masked and predicted.
        mask: kind of view with its masked tokens: `blocks` (image), `spans` (audio), `words` (text).
        targets: what is predicted: words (BERT), hog (MaskFeat), codes (BEiT-like, HuBERT, BEST-RQ), features of a frozen encoder
            (MVP, EVA).
        predictor: head of each token, not used after training: linear (BEiT, MaskFeat), bert, cosine (HuBERT).
        places: null: the encoder sees a learned vector in place of hidden tokens. Else it does not see hidden tokens, and this
            predictor is asked for features at their places, of which masks have equal counts; not used after training (the label
            predictor of BEATs, a transformer).
        mean: "samples": mean over samples of the mean over their masked tokens; "tokens": mean over all masked tokens of the
            batch, as in BERT. They differ where samples have different numbers of masked tokens, as texts do.
    """

    kind: Literal["masked_prediction"] = "masked_prediction"
    modality: Name
    view: str
    mask: str
    targets: FixedTargetsConfig
    predictor: TokenPredictorConfig
    places: PlacesPredictorConfig | None = None
    mean: Mean = "samples"

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> MaskedPredictionObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: there is no encoder, or the targets are not of its kind of input.
        """
        encoder = encoder_of(encoders, self.modality)
        words = self.targets.kind == "words"
        if words != (encoder.token_ids is not None) or encoder.grid is None:
            wanted = "words for texts, and hog, codes or features for other modalities with a token grid"
            raise ValueError(f"targets: got {self.targets.kind} for {self.modality!r}, wanted {wanted}")
        targets = self.targets.build(encoder)
        return MaskedPredictionObjective(
            self.modality,
            self.view,
            self.mask,
            targets,
            self.predictor.build(encoder.width, targets.size),
            encoder.width,
            None if self.places is None else self.places.build(encoder.width, encoder.grid),
            self.mean,
            plan.total_steps,
            plan.samples,
        )


class MaskedPredictionObjective(Objective):
    """Masked prediction: an encoder sees a masked view, and a head predicts fixed targets of the masked tokens.

    BERT (Devlin et al. 2019, arXiv:1810.04805), BEiT (Bao et al. 2022, arXiv:2106.08254), MaskFeat (Wei et al. 2022,
    arXiv:2112.09133), HuBERT (Hsu et al. 2021, arXiv:2106.07447). A learned vector takes the place of hidden tokens before their
    positions are added; or they are left out, and predicted at their places from the others (BEATs, Chen et al. 2023,
    arXiv:2212.09058). Targets are made of the view itself in every step, so no labels are stored. Of classes the loss is the
    cross entropy, of values the squared error, of features 1 - cosine. The metric chance_loss is the loss of the best guess that
    sees nothing, the entropy of the classes in the batch; zero_loss that of a prediction of zeros.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that is masked and predicted.
        mask: kind of view with the mask [B, T], or of texts with an order of places [B, L].
        targets: makes the targets.
        predictor: [..., D] -> [..., size of the targets].
        width: D.
        places: predicts features of hidden tokens that the encoder does not see; None: it sees a learned vector instead.
        mean: over samples, or over all masked tokens.
        total_steps: of the run.
        samples: training samples of the run.
    """

    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: str,
        mask: str,
        targets: FixedTargets,
        predictor: nn.Module,
        width: int,
        places: PlacesPredictor | None,
        mean: Mean,
        total_steps: int = 1,
        samples: int = 0,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.mask, self.mean = modality, view, mask, mean
        self.targets, self.predictor, self.places = targets, predictor, places
        self.total_steps, self.samples = total_steps, samples
        self.reduction = Reduction.LOCAL if mean == "samples" else Reduction.STATISTIC
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02)) if places is None else None

    def needs(self) -> Needs:
        """One view and one mask."""
        return {self.modality: {self.view: 1, self.mask: 1}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, replacing or dropping them (mask_replace, mask_drop), attention in both directions."""
        masked = Encoder.MASK_REPLACE if self.places is None else Encoder.MASK_DROP
        return {self.modality: frozenset({Encoder.TOKENS, masked, Encoder.BIDIRECTIONAL})}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that masks and targets are those of the encoder's tokens."""
        self._masked(batch, ctx.encoders[self.modality])

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Mean error of each sample [B] and the number of its predicted tokens; of classes also hits [B] and classes [B, T].

        Raises:
            ValueError: the mask is not one of the encoder's tokens, or targets have another size than configured; or masks have
                different counts where hidden tokens are left out.
        """
        target, seen, hidden, mask = self._masked(batch, ctx.encoders[self.modality])
        changed = replace(batch, views={**batch.views, self.modality: {f"{self.view}0": seen}})
        presence = ctx.presence(batch, self.modality)
        if self.places is None:
            tokens = self._replaced(changed, ctx, hidden)[mask]
        else:
            tokens, mask = self._left_out(changed, ctx, mask, presence.get("present"))
        prediction = at_least_float32(self.predictor(tokens))  # [M, K or P] of the M masked tokens
        found = {"count": mask.sum(1), **presence}
        if self.targets.classes:
            hits = (prediction.argmax(-1) == target[mask]).to(prediction.dtype)
            found |= {
                "error": masked_cross_entropy(prediction, target, mask),
                "hits": token_means(hits, mask),
                "classes": target.masked_fill(~mask, -1),
            }
            return zero_absent(found)
        wanted = target[mask].to(prediction.dtype)
        if self.targets.directions:
            error = 1 - F.cosine_similarity(prediction, wanted, dim=-1)
            zero = torch.ones_like(error)
        else:
            error, zero = (prediction - wanted).square().mean(-1), wanted.square().mean(-1)
        return zero_absent(found | {"error": token_means(error, mask), "zero": token_means(zero, mask)})

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics of classes: accuracy, share of the most frequent one, and the loss of a blind guess."""
        present = Present(latents)
        here = {name: present.rows(x) for name, x in latents.items() if name != "present"}
        loss = mean_of_errors(here["error"], here["count"], self.mean)
        rest = {name: x.detach() for name, x in here.items() if name != "error"}

        def measure() -> dict[str, Tensor]:
            if not self.targets.classes:
                return {"zero_loss": _mean_over_processes(rest["zero"], rest["count"], self.mean)}
            shares = class_shares(rest["classes"], self.targets.size)
            return {
                "accuracy": _mean_over_processes(rest["hits"], rest["count"], "tokens"),
                "majority": shares.max().float(),
                "classes_used": torch.special.entr(shares).sum().exp().float(),
                "chance_loss": torch.special.entr(shares).sum().float(),
            }

        return LossOutput({"masked": loss}, measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Accuracy beside the share of the most frequent class, or the loss of predicting zeros."""
        if "accuracy" in scalars:
            return Headline(scalars["chance_loss"], {name: scalars[name] for name in ("accuracy", "majority")})
        return Headline(figures={"zero loss": scalars["zero_loss"]})

    def refresh_every(self) -> int | None:
        """Once, before the first step, where a quantizer is fitted to the training samples."""
        return None if self.targets.centroids is None else self.total_steps

    def refresh_needs(self) -> Needs:
        """The view that is predicted."""
        return {self.modality: {self.view: 1}}

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> list[str]:
        """Fit the quantizer to some tokens of the training samples, the same ones on any number of processes.

        Raises:
            ValueError: there are fewer tokens than codes.
        """
        centroids, encoder = self.targets.centroids, ctx.encoders[self.modality]
        assert centroids is not None
        assert encoder.grid is not None, "checked at build"
        each = min(-(-centroids.rows // max(1, self.samples)), math.prod(encoder.grid))  # tokens of a sample
        share = min(1.0, centroids.rows / max(1, self.samples))  # of the samples
        points = centroids.points
        index, rows = [points.new_empty(0, dtype=torch.int64)], [points.new_zeros(0, each, points.shape[1])]
        for batch in batches:
            noise = mixed_bits(batch.index + 1)
            read = (noise & 0xFFFFFF) < share * 2**24
            read &= ctx.presence(batch, self.modality).get("present", torch.ones_like(read))
            found = self.targets.features(batch.view(self.modality, f"{self.view}0"), encoder)
            places = (noise[:, None] >> 24 & 0xFFFFFF) + torch.arange(each, device=noise.device) * 7919
            places = (places % found.shape[1])[..., None].expand(-1, -1, found.shape[2])
            index.append(batch.index[read])
            rows.append(found.gather(1, places)[read])
        distributed.gather_objects(None)  # where a process could not read, all learn it here
        centroids.fit(torch.cat(index), torch.cat(rows), ctx.generator("starts"))
        return []

    def _replaced(self, batch: Batch, ctx: StepContext, hidden: Tensor) -> Tensor:
        """Tokens [B, T, D] of the view with a learned vector in place of those under the mask [B, T]."""
        assert self.mask_token is not None
        (features,) = ctx.features(batch, self.modality, [f"{self.view}0"], replace=([hidden], self.mask_token))
        assert features.tokens is not None
        return features.tokens

    def _left_out(self, batch: Batch, ctx: StepContext, mask: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features [M, D] of the masked tokens, sample by sample, which are predicted from the others; and the mask [B, T].

        Masks of absent samples have no effect; they get as many places as the others have.
        """
        assert self.places is not None
        here = mask if present is None or not present.any() else mask[present]
        order = (~mask).byte().argsort(dim=-1, stable=True)  # the hidden places first
        hidden, keep = (x.sort(1).values for x in order.tensor_split([equal_count(here[:, None], self.mask)], 1))
        (features,) = ctx.features(batch, self.modality, [f"{self.view}0"], keep=[keep])
        normal = partial(normal_noise, batch.index, ctx.generator("places").initial_seed())
        found: Tensor = self.places(features.tokens, keep, hidden[:, None], normal)
        return found.flatten(0, 2), torch.zeros_like(mask).scatter(1, hidden, True)

    def _masked(self, batch: Batch, encoder: Encoder) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Targets [B, T] or [B, T, P], the view that the encoder sees, and the masks [B, T] of hidden and predicted tokens."""
        x, given = (batch.view(self.modality, f"{kind}0") for kind in (self.view, self.mask))
        with torch.no_grad():
            target = self.targets(x, encoder)
            if not self.targets.of_text and (given.dtype != torch.bool or given.shape != target.shape[:2]):
                raise ValueError(
                    f"got masks {given.dtype} {list(given.shape)} from modalities.{self.modality}.views.{self.mask}, wanted bool "
                    f"[B, {target.shape[1]}] for the tokens of the view {self.view!r}: give it the encoder's patches, or number "
                    "of tokens"
                )
            return target, *self.targets.mask(x, given)


def _mean_over_processes(errors: Tensor, counts: Tensor, mean: Mean) -> Tensor:
    """The mean of detached errors over samples or tokens of all processes. A collective."""
    return distributed.total_detached(mean_of_errors(errors, counts, mean)) / distributed.world_size()
