"""Predictive pairs of modalities (LeVLJEPA): each predicts the embedding of the other; no negatives, no temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.config import Config
from mmssl.core.context import StepContext
from mmssl.core.objective import Latents, LossOutput
from mmssl.heads.projection import HeadConfig
from mmssl.losses.info_nce import info_nce_accuracy
from mmssl.losses.prediction_error import prediction_error
from mmssl.losses.sigreg import random_directions, sigreg, sigreg_of_normal
from mmssl.objectives.common import Name, at_least_float32
from mmssl.objectives.parts.pairs import Pair, modalities_of

RAW = "raw"
"""Latents "raw/<modality>" are embeddings before normalisation."""


class PredictionConfig(Config):
    """Settings of the loss of predictive pairs; see `PredictivePairs`.

    Attributes:
        predictor: network from the embedding of one modality to that of the other, one for each direction of each pair. Evaluators
            use it for each sample alone, so an MLP has norm: layer or none. LeVLJEPA: 5 layers, hidden 2048, norm batch. Identity:
            no network, the embeddings of a sample are drawn to each other, as views are in LeJEPA, into one space.
        sigreg_weight: lambda, weight of SIGReg of each of the two modalities. LeVLJEPA: 0.02, in batches of 4096. Below 1.3 / batch
            (identity: 2.6 / batch) a collapse costs less than embeddings of which nothing is predicted.
        regularised: modalities with SIGReg, at least one of each predictive pair; null: all. Leave out one that has much which the
            others do not tell, such as pictures beside short captions: it learns what they tell, and cannot collapse while it does.
        directions: number of random directions of SIGReg in each step. LeVLJEPA: 4096.
    """

    predictor: HeadConfig
    sigreg_weight: float = Field(gt=0)
    regularised: tuple[Name, ...] | None = Field(default=None, min_length=1)
    directions: int = Field(default=1024, gt=0)

    def check(self, pairs: Sequence[Pair]) -> None:
        """Check that some modality of each predictive pair is regularised, and that all these modalities are predictive.

        Raises:
            ValueError: names the first that is not.
        """
        for modality in self.regularised or ():
            if modality not in modalities_of(pairs):
                raise ValueError(
                    f"prediction.regularised: got {modality!r}, wanted modalities of predictive pairs: {modalities_of(pairs)}"
                )
        for pair in pairs:
            if self.regularised is not None and not {pair.first, pair.second} & {*self.regularised}:
                raise ValueError(
                    f"prediction.regularised: got {list(self.regularised)}, and neither modality of the predictive pair "
                    f"{pair.name}, whose embeddings would all become equal; add one of them"
                )

    def build(self, pairs: Sequence[Pair], embedding: int) -> PredictivePairs:
        """Build the predictors of pairs of embeddings [B, embedding]."""
        ways = [way for pair in pairs for way in (_way(pair.first, pair.second), _way(pair.second, pair.first))]
        no_network = self.predictor.kind == "identity"
        predictors = {} if no_network else {way: self.predictor.build(embedding, embedding) for way in ways}
        regularised = modalities_of(pairs) if self.regularised is None else self.regularised
        return PredictivePairs(
            pairs, predictors, regularised, sigreg_weight=self.sigreg_weight, directions=self.directions
        )


class PredictivePairs(nn.Module):
    """Loss of predictive pairs: each modality predicts the other's embedding, and SIGReg makes embeddings normally distributed.

    Kuhn et al. 2026, "LeVLJEPA" (arXiv:2607.00784). For embeddings z, outputs of the heads that are not normalised, a pair costs
    1/2 (|p_ab(z_a) - sg(z_b)|^2 + |p_ba(z_b) - sg(z_a)|^2) + lambda (SIGReg(z_a) + SIGReg(z_b)). Squares are means over features
    and over the samples with both modalities; SIGReg is over the samples that have the modality. The authors' code also multiplies
    the first half by 1 - 2 lambda.

    A prediction is like its target, but the embeddings of two modalities may differ by any rotation. So `heads` embed a sample in
    the spaces of all modalities: its own embedding, and its predictions of the others. The cosine of two samples is then the mean
    of the cosines of prediction and target in both directions (the authors' "avg" of zero-shot classification).

    Args:
        pairs: the predictive pairs.
        predictors: "a-b" -> [B, E] -> [B, E], from the embedding of a to that of b, both directions of every pair.
        regularised: modalities with SIGReg; an embedding without it becomes what the others tell of it, and no wider.
        sigreg_weight: lambda.
        directions: number of random directions in each step.
    """

    def __init__(
        self,
        pairs: Sequence[Pair] = (),
        predictors: Mapping[str, nn.Module] | None = None,
        regularised: Sequence[str] = (),
        *,
        sigreg_weight: float = 0.0,
        directions: int = 1,
    ) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.modalities = modalities_of(self.pairs)
        self.predictors = nn.ModuleDict(dict(predictors or {}))
        self.regularised = tuple(regularised)
        self.sigreg_weight, self.directions = sigreg_weight, directions

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term for each pair; metrics: `sigreg/<modality>`, without its weight (optimum 1.05), and those of each pair."""
        distances = {modality: self._sigreg(modality, latents, ctx) for modality in self.regularised}
        terms, measures = {}, []
        for pair in self.pairs:
            a, b = latents[f"{RAW}/{pair.first}"], latents[f"{RAW}/{pair.second}"]
            both = latents[f"present/{pair.first}"] & latents[f"present/{pair.second}"]
            of_b = self.predict(pair.first, pair.second, a)
            of_a = self.predict(pair.second, pair.first, b)
            error = (prediction_error(of_b, b, both) + prediction_error(of_a, a, both)) / 2
            distance = [distances[modality] for modality in (pair.first, pair.second) if modality in distances]
            terms[pair.name] = pair.weight * (error + self.sigreg_weight * torch.stack(distance).sum())
            sides = torch.cat([_unit(of_b), _unit(a)], -1).detach(), torch.cat([_unit(b), _unit(of_a)], -1).detach()
            # Of a regularised modality nothing is told: predictors miss it by 1 in one direction, and without them both directions.
            chance = len(distance) * ((0.5 if self.predictors else 1) + self.sigreg_weight * sigreg_of_normal())
            measures.append(partial(self._metrics, pair, error.detach(), chance, sides, both))
        seen = {f"sigreg/{modality}": distance.detach() for modality, distance in distances.items()}
        return LossOutput(terms, lambda: seen | {name: x for measure in measures for name, x in measure().items()})

    def heads(self, projections: Mapping[str, nn.Module], shared: Sequence[Pair]) -> dict[str, nn.Module]:
        """Heads [B, D] -> [B, M * E] into the spaces of all modalities; the projections themselves if nothing is predicted.

        Args:
            projections: modality -> [B, D] -> [B, E].
            shared: pairs whose modalities are in one space, so that the embedding of one stands for its prediction.
        """
        if not self.predictors:
            return dict(projections)
        alike = {frozenset((pair.first, pair.second)) for pair in shared} | {frozenset((name,)) for name in projections}
        same = {_way(a, b): nn.Identity() for a in projections for b in projections if frozenset((a, b)) in alike}
        into = {**dict(self.predictors.items()), **same}
        return {
            modality: AllSpaces(projection, [into.get(_way(modality, other), Zero()) for other in projections])
            for modality, projection in projections.items()
        }

    def predict(self, source: str, target: str, x: Tensor) -> Tensor:
        """Embeddings [B, E] of one modality -> predictions [B, E] of those of another."""
        predicted: Tensor = self.predictors[_way(source, target)](x) if self.predictors else x
        return predicted

    def _sigreg(self, modality: str, latents: Latents, ctx: StepContext) -> Tensor:
        """SIGReg of the embeddings of one modality, of the samples that have it."""
        x = latents[f"{RAW}/{modality}"]
        x = x[latents[f"present/{modality}"]] if modality in ctx.optional else x
        random = ctx.generator(f"sigreg/{modality}", x.device)
        return sigreg(x[None], random_directions(x, self.directions, random))

    def _metrics(
        self, pair: Pair, error: Tensor, chance: float, sides: tuple[Tensor, Tensor], both: Tensor
    ) -> dict[str, Tensor]:
        """Metrics of a pair, as `pair_metrics` names them; `chance_loss`: normal embeddings, of which nothing is predicted."""
        a, b = sides
        present = distributed.gather_detached(both)
        there, back = info_nce_accuracy(
            a,
            b,
            all_a=distributed.gather_detached(a),
            all_b=distributed.gather_detached(b),
            offset=distributed.rank() * len(a),
            present=present,
        )
        metrics = {
            "prediction": error,
            f"{pair.first}_to_{pair.second}_accuracy": there,
            f"{pair.second}_to_{pair.first}_accuracy": back,
            "chance_loss": torch.full_like(error, chance),
            "samples": present.sum().to(error.dtype),
        }
        return {f"{pair.name}/{name}": x for name, x in metrics.items()}


class Zero(nn.Module):
    """Zeros of the shape of the input: in place of a space that a modality is not compared in."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, E] -> [B, E]."""
        return torch.zeros_like(x)


class AllSpaces(nn.Module):
    """Head [B, D] -> [B, M * E]: an embedding and its predictions in the spaces of M modalities, each of unit norm.

    Args:
        projection: [B, D] -> [B, E].
        spaces: [B, E] -> [B, E], one for each modality.
    """

    def __init__(self, projection: nn.Module, spaces: Sequence[nn.Module]) -> None:
        super().__init__()
        self.projection = projection
        self.spaces = nn.ModuleList(spaces)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, M * E]."""
        embedded = self.projection(x)
        return torch.cat([_unit(space(embedded)) for space in self.spaces], -1)


def _way(source: str, target: str) -> str:
    """Name of the direction from one modality to another."""
    return f"{source}-{target}"


def _unit(x: Tensor) -> Tensor:
    return F.normalize(at_least_float32(x), dim=-1)
