"""Latent prediction (data2vec): hidden layers of a teacher that sees all tokens, predicted at masked ones; no negatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.forward import Network
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Scheduled
from mmssl.core.teacher import Momentum
from mmssl.losses.latent_prediction import (
    LEAST_STD,
    latent_targets,
    masked_latent_error,
    masked_sums,
    token_std,
)
from mmssl.losses.masked_tokens import Mean, mean_of_errors
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of
from mmssl.objectives.parts.regression_targets import LayerAverage
from mmssl.objectives.parts.word_masks import WordMaskConfig, mask_words

Targets = Callable[[Sequence[Tensor], Tensor | None], Tensor]
"""Layers [K x [B, T, D]] and the mask of real tokens [B, T], or None -> targets [B, T, D]."""
MaskedErrors = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Predictions [B, T, D], targets [B, T, D] and the mask [B, T] -> mean error of each sample [B]."""


class LatentPredictionConfig(LayerAverage, ObjectiveConfig):
    """Settings of latent prediction (data2vec) for one modality; see `LatentPredictionObjective`.

    Attributes:
        modality: modality of the encoder to train, a transformer; of texts, one that is not causal.
        view: kind of view that is masked and predicted.
        mask: kind of view with its masked tokens: `blocks` (image), `spans` (audio), `words` (text).
        words: share of masked words; for texts, and only for them.
        beta: difference at which the error turns from squared to absolute (smooth L1); null: squared. data2vec: 2 (image), null
            (audio), 4 (text).
        mean: "samples": mean over samples of the mean over their masked tokens; "tokens": mean over all masked tokens of the
            batch, as in data2vec. They differ where samples have different numbers of masked tokens, as texts do.
        momentum: of the teacher. data2vec: constant 0.9998 (image), linear from 0.999 to 0.9999 (audio, text).
        predictor_layers: linear layers from the student's tokens to the targets, of hidden size 2D. data2vec: 1, for text 2.
    """

    kind: Literal["latent_prediction"] = "latent_prediction"
    modality: Name
    view: str
    mask: str
    words: WordMaskConfig | None = None
    beta: Annotated[float, Field(gt=0)] | None
    mean: Mean = "samples"
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]
    predictor_layers: int = Field(default=1, ge=1)

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> LatentPredictionObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the encoder has fewer layers, or `words` does not fit its modality.
        """
        encoder = encoder_of(encoders, self.modality)
        self.check_depth(encoder, self.modality, "layers")
        if (self.words is None) != (encoder.token_ids is None):
            got, wanted = ("nothing", "a ratio") if self.words is None else (f"ratio {self.words.ratio:g}", "nothing")
            raise ValueError(
                f"words: got {got}, wanted {wanted} for {self.modality!r}: it says how many words of a text are masked; masks of "
                "other modalities have a ratio of their own"
            )
        return LatentPredictionObjective(
            self.modality,
            self.view,
            self.mask,
            self.layers,
            mlps=self.outputs == "mlps",
            targets=partial(latent_targets, norm=self.norm, norm_mean=self.norm_mean),
            errors=partial(masked_latent_error, beta=self.beta, over_features=self.over_features),
            mean=self.mean,
            words=self.words,
            predictor=predictor(encoder.width, self.predictor_layers),
            momentum=plan.schedule(self.momentum, "momentum"),
        )


def predictor(width: int, layers: int) -> nn.Module:
    """Linear layers [..., D] -> [..., D] of hidden size 2D, with GELU between them."""
    sizes = [width, *[2 * width] * (layers - 1), width]
    return nn.Sequential(*[part for pair in pairwise(sizes) for part in (nn.GELU(), nn.Linear(*pair))][1:])


class LatentPredictionObjective(Objective):
    """data2vec: the student sees a masked view, and predicts at masked tokens the teacher's hidden layers of the whole view.

    Baevski et al. 2022 (arXiv:2202.03555). A learned vector takes the place of masked tokens before their positions are added.
    Targets are the average of the outputs of the teacher's last K blocks, or of their MLPs, each normalised. Masks are views, drawn
    for each sample, equal on any number of processes. The teacher is a copy of the whole encoder; the student is evaluated.

    Collapsed features reach the lowest loss, 0, too. The metrics target_std and prediction_std are the spread over masked tokens;
    targets below 0.1 have collapsed. Targets that tell the places of tokens and nothing else have spread: look at a probe, too.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that is masked and predicted.
        mask: kind of view with the mask [B, T], or with an order of places [B, L], of which `words` takes the first.
        layers: K.
        mlps: whether targets are made of the outputs of mlps, and not of whole blocks.
        targets: makes targets of hidden layers.
        errors: compares predictions with them.
        mean: over samples, or over all masked tokens.
        words: how many words of a text are masked; None: the modality is no text.
        predictor: [B, T, D] -> [B, T, D].
        momentum: of the teacher.
    """

    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: str,
        mask: str,
        layers: int,
        *,
        mlps: bool,
        targets: Targets,
        errors: MaskedErrors,
        mean: Mean,
        words: WordMaskConfig | None,
        predictor: nn.Module,
        momentum: Momentum,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.mask, self.words = modality, view, mask, words
        self.layers, self.mlps, self.targets, self.errors, self.mean = layers, mlps, targets, errors, mean
        self.predictor, self.momentum = predictor, momentum
        self.reduction = Reduction.LOCAL if mean == "samples" else Reduction.STATISTIC
        width = next(predictor.parameters()).shape[1]
        self.mask_token = nn.Parameter(torch.empty(width).normal_(std=0.02))

    def needs(self) -> Needs:
        """One view and one mask."""
        return {self.modality: {self.view: 1, self.mask: 1}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, replacing tokens (mask_replace), hidden layers, attention in both directions."""
        wanted = {Encoder.TOKENS, Encoder.MASK_REPLACE, Encoder.HIDDEN, Encoder.BIDIRECTIONAL}
        return {self.modality: frozenset(wanted | ({Encoder.MLPS} if self.mlps else set()))}

    def hidden_layers(self) -> Mapping[Network, Mapping[str, int]]:
        """The last layers of the teacher."""
        return {"teacher": {self.modality: self.layers}}

    def teachers(self) -> Mapping[str, Momentum]:
        """A teacher of the encoder."""
        return {self.modality: self.momentum}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Error and number of masked tokens of each sample [B], and sums of targets and predictions over them [B, 2, D].

        Raises:
            ValueError: the mask does not fit the tokens of the view.
        """
        names = [f"{self.view}0"]
        (whole,) = ctx.features(
            batch, self.modality, names, network="teacher", hidden=self.layers, mlps=self.mlps, pooled_only=True
        )
        assert whole.hidden is not None
        mask, real = self._masked(batch, whole.hidden[-1])
        target = self.targets(whole.hidden, real)
        (seen,) = ctx.features(batch, self.modality, names, replace=([mask], self.mask_token))
        prediction = at_least_float32(self.predictor(seen.tokens))
        return {
            "error": self.errors(prediction, target, mask),
            "count": mask.sum(1),
            "target_sums": masked_sums(target, mask),
            "prediction_sums": masked_sums(prediction, mask),
            **ctx.presence(batch, self.modality),
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: spread of targets and predictions over masked tokens, and the least of targets."""
        present = Present(latents)
        error, count = present.rows(latents["error"]), present.rows(latents["count"])
        loss = mean_of_errors(error, count, self.mean)
        sums = {name: present.rows(latents[f"{name}_sums"]).detach() for name in ("target", "prediction")}

        def measure() -> dict[str, Tensor]:
            found = {f"{name}_std": token_std(x, count) for name, x in sums.items()}
            return found | {"target_std_least": torch.full_like(found["target_std"], LEAST_STD)}

        return LossOutput({"latent": loss}, measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Spread of the targets; there is no chance loss, because collapse reaches the lowest loss."""
        return Headline(figures={"target std": scalars["target_std"]})

    def _masked(self, batch: Batch, layer: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mask [B, T], and that of real tokens [B, T] or None, for a hidden layer [B, T, D] of the whole view."""
        given, tokens = batch.view(self.modality, f"{self.mask}0"), layer.shape[1]
        if self.words is not None:
            real = (layer != 0).any(-1)  # hidden layers are zero at padding
            return mask_words(given, real, self.words.ratio, self.words.span), real
        if given.dtype != torch.bool or given.shape != layer.shape[:2]:
            raise ValueError(
                f"got masks {given.dtype} {list(given.shape)} from modalities.{self.modality}.views.{self.mask}, wanted "
                f"bool [B, {tokens}] for the tokens of the view {self.view!r}: give it the encoder's patches, or number of tokens"
            )
        return given, None
