"""JEPA (I-JEPA, V-JEPA): from the tokens of a context, predict a teacher's features at the places of hidden blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.forward import Network
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Scheduled
from mmssl.core.teacher import Momentum
from mmssl.heads.decoders import MaskedTokenDecoderConfig, PlacesPredictor
from mmssl.losses.latent_prediction import LEAST_STD, masked_sums, place_error, token_std
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of, equal_count
from mmssl.objectives.parts.presence import zero_absent


def _different(kinds: tuple[str, ...]) -> tuple[str, ...]:
    if not kinds or len(set(kinds)) != len(kinds):
        raise ValueError(f"got {list(kinds)}, wanted one kind of mask or more, each once")
    return kinds


class JepaConfig(ObjectiveConfig):
    """Settings of joint-embedding prediction for one modality; see `JepaObjective`.

    Attributes:
        modality: modality of the encoder to train, a transformer.
        view: kind of view that is encoded.
        masks: kinds of views with a context and blocks to predict, `{kind: jepa}`. I-JEPA: one; V-JEPA: two, of short and of long
            blocks.
        predictor: size of the predictor, which is not used after training. I-JEPA: width 384, depth 12 for ViT-H (6 for ViT-B).
        beta: difference at which the error turns from squared to absolute. I-JEPA: 1; V-JEPA: 0.
        momentum: of the teacher. I-JEPA: linear from 0.996 to 1; V-JEPA: from 0.998 to 1.
    """

    kind: Literal["jepa"] = "jepa"
    modality: Name
    view: str
    masks: Annotated[tuple[str, ...], AfterValidator(_different)]
    predictor: MaskedTokenDecoderConfig
    beta: float = Field(ge=0)
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> JepaObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: there is no encoder, or it has no token grid.
        """
        encoder = encoder_of(encoders, self.modality)
        if encoder.grid is None:
            raise ValueError(
                f"jepa needs an encoder for {self.modality!r} with a token grid, and {type(encoder).__name__} has none; use a "
                "transformer (kind vit, audio_transformer, series_transformer or space_time)"
            )
        size = self.predictor
        predictor = PlacesPredictor(encoder.width, encoder.grid, size.width, size.depth, size.heads)
        momentum = plan.schedule(self.momentum, "momentum")
        return JepaObjective(self.modality, self.view, self.masks, predictor, self.beta, momentum)


class JepaObjective(Objective):
    """JEPA: smooth L1 error of a teacher's features, predicted at the places of blocks that the student does not see.

    Assran et al. 2023 (I-JEPA, arXiv:2301.08243); Bardes et al. 2024 (V-JEPA, arXiv:2404.08471). The student encodes the tokens of
    a context; a light predictor is asked for each block by its positions. Targets are the teacher's tokens of the whole view, each
    normalised over its features. The error is a mean over the blocks of a mask, then over masks. The teacher is evaluated.

    Collapsed features reach the lowest loss, 0, too: targets whose spread over tokens, target_std, is below 0.1 have collapsed.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that is encoded.
        masks: kinds of masks [B, 1 + M, T] bool: the context, and M blocks of equal size.
        predictor: predicts features at places.
        beta: of the error.
        momentum: of the teacher.
    """

    reduction = Reduction.LOCAL
    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: str,
        masks: tuple[str, ...],
        predictor: PlacesPredictor,
        beta: float,
        momentum: Momentum,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.masks = modality, view, masks
        self.predictor, self.beta, self.momentum = predictor, beta, momentum

    def needs(self) -> Needs:
        """One view, and masks of each kind."""
        return {self.modality: {self.view: 1, **dict.fromkeys(self.masks, 1)}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, and dropping tokens (mask_drop)."""
        return {self.modality: frozenset({Encoder.TOKENS, Encoder.MASK_DROP})}

    def teachers(self) -> Mapping[str, Momentum]:
        """A teacher of the encoder."""
        return {self.modality: self.momentum}

    def evaluated(self) -> Mapping[str, Network]:
        """The teacher."""
        return {self.modality: "teacher"}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that masks are those of the encoder's tokens."""
        self.encode(batch, ctx)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Error of each sample [B], and what the spread of targets and predictions is computed from.

        Raises:
            ValueError: masks are not of the encoder's tokens.
        """
        name = f"{self.view}0"
        presence = ctx.presence(batch, self.modality)
        present = presence.get("present")
        places = [self._places(batch.view(self.modality, f"{kind}0"), kind, present) for kind in self.masks]
        (whole,) = ctx.features(batch, self.modality, [name], network="teacher")
        contexts = [context for context, _ in places]
        seen = ctx.features(batch, self.modality, [name] * len(places), keep=contexts)
        assert whole.tokens is not None
        target = F.layer_norm(at_least_float32(whole.tokens), whole.tokens.shape[-1:])
        errors, predicted = [], []
        for features, (context, blocks) in zip(seen, places, strict=True):
            prediction = at_least_float32(self.predictor(features.tokens, context, blocks))  # [B, M, n, D]
            at = blocks.flatten(1)[..., None].expand(-1, -1, target.shape[2])
            errors.append(place_error(prediction.flatten(1, 2), target.gather(1, at), self.beta))
            predicted.append(prediction.detach().flatten(1, 2))
        all_tokens = target.new_ones(target.shape[:2], dtype=torch.bool)
        predictions = torch.cat(predicted, 1)
        found: Latents = {
            "error": torch.stack(errors).mean(0),
            "target_sums": masked_sums(target, all_tokens),
            "targets": all_tokens.sum(1),
            "prediction_sums": masked_sums(predictions, predictions.new_ones(predictions.shape[:2], dtype=torch.bool)),
            "predictions": torch.full_like(all_tokens.sum(1), predictions.shape[1]),
            **presence,
        }
        return zero_absent(found)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metrics: spread of targets and predictions over tokens, and the least of targets."""
        present = Present(latents)
        loss = distributed.mean(present.rows(latents["error"]))
        sums = {
            name: (present.rows(latents[f"{name}_sums"]).detach(), present.rows(latents[f"{name}s"]))
            for name in ("target", "prediction")
        }

        def measure() -> dict[str, Tensor]:
            found = {f"{name}_std": token_std(*given) for name, given in sums.items()}
            return found | {"target_std_least": torch.full_like(found["target_std"], LEAST_STD)}

        return LossOutput({"jepa": loss}, measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Spread of the targets; there is no chance loss, because collapse reaches the lowest loss."""
        return Headline(figures={"target std": scalars["target_std"]})

    def _places(self, masks: Tensor, kind: str, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """The places of the context [B, C] and of the blocks [B, M, n], int64."""
        tokens = self.predictor.tokens
        if masks.dtype != torch.bool or masks.ndim != 3 or masks.shape[1] < 2 or masks.shape[2] != tokens:
            raise ValueError(
                f"got masks {masks.dtype} {list(masks.shape)} from modalities.{self.modality}.views.{kind}, wanted bool "
                f"[B, 1 + blocks, {tokens}] for the encoder's tokens: a view of kind jepa with its patches"
            )
        here = masks if present is None else masks[present]
        context, blocks = (equal_count(part, kind) for part in (here[:, :1], here[:, 1:]))
        order = (~masks).byte().argsort(dim=-1, stable=True)  # the places of a mask first
        return order[:, 0, :context], order[:, 1:, :blocks]
