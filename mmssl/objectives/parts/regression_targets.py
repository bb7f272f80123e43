"""Targets of JEPA that are features: a teacher's last layer (I-JEPA), or an average of its last layers (data2vec 2.0, EAT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.config import Config
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features
from mmssl.core.objective import Headline, Latents, LossOutput
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.teacher import Momentum
from mmssl.losses.latent_prediction import (
    LEAST_STD,
    OverFeatures,
    TargetNorm,
    latent_targets,
    masked_latent_error,
    masked_sums,
    place_error,
    token_std,
)
from mmssl.objectives.common import at_least_float32
from mmssl.objectives.parts.latent_targets import LatentTargets, LatentTargetsBase, Predicted

TokenErrors = Callable[[Tensor, Tensor], Tensor]
"""Predictions [N, n, D] and targets [N, n, D] -> mean error of each row [N]."""


class RegressionTargets(LatentTargets):
    """Targets that are features, and an error of each sample; collapsed features reach the lowest loss, 0, too.

    With `pooled`, the student's pooled features also predict the mean of the targets over all tokens: the loss of the class token
    of data2vec 2.0 (Baevski et al. 2022, arXiv:2212.07525), the utterance loss of EAT (Chen et al. 2024, arXiv:2401.03497).

    Args:
        make: makes targets of the teacher's features.
        errors: compares predictions with targets.
        hidden: number of the teacher's last layers that are read.
        mlps: whether these are outputs of mlps.
        pooled: weight of the error of pooled features; 0: it is not computed.
    """

    def __init__(
        self,
        make: Callable[[Features], Tensor],
        errors: TokenErrors,
        hidden: int = 0,
        mlps: bool = False,
        pooled: float = 0.0,
    ) -> None:
        super().__init__()
        self.make, self.errors, self.hidden, self.mlps, self.pooled = make, errors, hidden, mlps, pooled

    def of(self, features: Features) -> Tensor:
        """See the base."""
        return self.make(features)

    def encode(self, predicted: Sequence[Predicted], whole: Tensor | None) -> Latents:
        """Errors of each sample [B], and what the spread of targets and predictions is computed from."""
        errors = [self._mean_error(one.tokens, one.targets) for one in predicted]
        found: Latents = {"error": torch.stack(errors).mean(0)}
        if self.pooled:
            assert whole is not None
            mean = whole.mean(1, keepdim=True)  # [B, 1, D]
            pooled = [
                self._mean_error(one.pooled[:, :, None], mean.expand(len(one.pooled), -1, -1, -1)) for one in predicted
            ]
            found["pooled_error"] = torch.stack(pooled).mean(0)
        count = sum(one.tokens.shape[0] * one.tokens.shape[2] for one in predicted)
        for kind in ("target", "prediction"):
            given = [one.targets if kind == "target" else one.tokens.detach() for one in predicted]
            found[f"{kind}_sums"] = torch.stack([_sums(x) for x in given]).sum(0)
            found[f"{kind}s"] = torch.full_like(found["error"], count, dtype=torch.int64)
        return found

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """A term of hidden tokens, and one of pooled features; metrics: spread of targets and predictions over tokens."""
        present = Present(latents)
        terms = {"jepa": distributed.mean(present.rows(latents["error"]))}
        if self.pooled:
            terms["pooled"] = self.pooled * distributed.mean(present.rows(latents["pooled_error"]))
        sums = {
            name: (present.rows(latents[f"{name}_sums"]).detach(), present.rows(latents[f"{name}s"]))
            for name in ("target", "prediction")
        }

        def measure() -> dict[str, Tensor]:
            found = {f"{name}_std": token_std(*given) for name, given in sums.items()}
            return found | {"target_std_least": torch.full_like(found["target_std"], LEAST_STD)}

        return LossOutput(terms, measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Spread of the targets; there is no chance loss, because collapse reaches the lowest loss."""
        return Headline(figures={"target std": scalars["target_std"]})

    def _mean_error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean over R of the errors of [R, B, n, D], [B]."""
        return self.errors(prediction.flatten(0, 1), target.flatten(0, 1)).view(prediction.shape[:2]).mean(0)


class LastLayerConfig(LatentTargetsBase):
    """The teacher's last layer, each token normalised over its features (I-JEPA, V-JEPA, M2D)."""

    kind: Literal["last"] = "last"

    def build(
        self, encoder: Encoder, modality: str, beta: float | None, momentum: Momentum, plan: Plan
    ) -> RegressionTargets:
        """See the base."""
        return RegressionTargets(_last_layer, partial(place_error, beta=beta))


class LayerAverage(Config):
    """Average of the last layers of a teacher, as in data2vec, and the error of a token's features.

    Attributes:
        layers: K, number of last blocks of the teacher that are averaged. data2vec: 6 of 12 (image), 8 (audio), 10 (text); data2vec
            2.0: 10; EAT: 12.
        outputs: what is averaged: of whole "blocks" (data2vec of image), or of their "mlps", before they are added (audio, text,
            data2vec 2.0, EAT).
        norm: of each layer: "layer", each token over its features (data2vec of image and text), or "instance", each feature over
            the tokens of a sample (audio, data2vec 2.0, EAT).
        norm_mean: normalise each token of the average again. data2vec: true for image, false for audio and text; data2vec 2.0 and
            EAT: true.
        over_features: errors of a token's features: "mean", "sum", or "sqrt", the sum divided by sqrt(D). data2vec: mean (image),
            sqrt (audio), sum (text); data2vec 2.0 and EAT: sqrt.
    """

    layers: int = Field(gt=0)
    outputs: Literal["blocks", "mlps"] = "blocks"
    norm: TargetNorm
    norm_mean: bool
    over_features: OverFeatures

    def check_depth(self, encoder: Encoder, modality: str, key: str) -> None:
        """Check that the encoder has these layers.

        Raises:
            ValueError: it has fewer.
        """
        if Encoder.HIDDEN in encoder.capabilities and self.layers > encoder.depth:
            raise ValueError(
                f"{key}: got {self.layers}, wanted at most {encoder.depth}, the depth of encoders.{modality}"
            )


class LayerTargetsConfig(LayerAverage, LatentTargetsBase):
    """Average of the last layers of the teacher, each normalised (data2vec 2.0, EAT).

    Attributes:
        pooled: weight of the error of the student's pooled features, which predict the mean of the targets over all tokens; 0: they
            do not. data2vec 2.0: 0.01; EAT, whose utterance loss it is: 1.
    """

    takes_block: ClassVar[bool] = False

    kind: Literal["layers"] = "layers"
    pooled: float = Field(default=0.0, ge=0)

    def build(
        self, encoder: Encoder, modality: str, beta: float | None, momentum: Momentum, plan: Plan
    ) -> RegressionTargets:
        """See the base."""
        self.check_depth(encoder, modality, "targets.layers")
        make = partial(_layers, norm=self.norm, norm_mean=self.norm_mean)
        errors = partial(_latent_error, beta=beta, over_features=self.over_features)
        return RegressionTargets(make, errors, self.layers, self.outputs == "mlps", self.pooled)


def _last_layer(features: Features) -> Tensor:
    assert features.tokens is not None
    tokens = at_least_float32(features.tokens)
    return F.layer_norm(tokens, tokens.shape[-1:])


def _layers(features: Features, norm: TargetNorm, norm_mean: bool) -> Tensor:
    assert features.hidden is not None
    return latent_targets(features.hidden, norm=norm, norm_mean=norm_mean)


def _latent_error(prediction: Tensor, target: Tensor, beta: float | None, over_features: OverFeatures) -> Tensor:
    everywhere = target.new_ones(target.shape[:2], dtype=torch.bool)
    return masked_latent_error(prediction, target, everywhere, beta, over_features)


def _sums(x: Tensor) -> Tensor:
    """Sums and sums of squares over all tokens of each sample, [R, B, n, D] -> [B, 2, D]."""
    rows = x.flatten(0, 1)
    everywhere = rows.new_ones(rows.shape[:2], dtype=torch.bool)
    return masked_sums(rows, everywhere).view(*x.shape[:2], 2, x.shape[-1]).sum(0)
