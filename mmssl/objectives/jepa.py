"""JEPA (I-JEPA, V-JEPA, M2D): from the tokens of a context, predict a teacher's features at the places of hidden blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features
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
        masks: kinds of views with a context and blocks to predict, `{kind: jepa}`, or with a mask of equal counts, whose hidden
            tokens are the one block, and the others the context. I-JEPA: one; V-JEPA: two, of short and of long blocks; M2D: one
            mask of random tokens, `{kind: inverse_blocks, side: 1, ratio: 0.7}`.
        predictor: size of the predictor, which is not used after training. I-JEPA: width 384, depth 12 for ViT-H (6 for ViT-B).
        teacher_sees: "view": the whole view; "block": the tokens of the block that is predicted alone, as in M2D.
        beta: difference at which the error turns from squared to absolute. I-JEPA: 1; V-JEPA: 0. null: 2 - 2 cosines, as in M2D.
        momentum: of the teacher. I-JEPA: linear from 0.996 to 1; V-JEPA: from 0.998 to 1; M2D: from 0.99995 to 0.99999.
        evaluate: the network that is evaluated. I-JEPA and V-JEPA: teacher; M2D: student.
    """

    kind: Literal["jepa"] = "jepa"
    modality: Name
    view: str
    masks: Annotated[tuple[str, ...], AfterValidator(_different)]
    predictor: MaskedTokenDecoderConfig
    teacher_sees: Literal["view", "block"] = "view"
    beta: Annotated[float, Field(ge=0)] | None
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]
    evaluate: Network = "teacher"

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
        return JepaObjective(self, predictor, plan.schedule(self.momentum, "momentum"))


class JepaObjective(Objective):
    """JEPA: error of a teacher's features, predicted at the places of blocks that the student does not see.

    Assran et al. 2023 (I-JEPA, arXiv:2301.08243); Bardes et al. 2024 (V-JEPA, arXiv:2404.08471); Niizumi et al. 2022 (M2D,
    arXiv:2210.14648), whose teacher sees nothing but the block. The student encodes the tokens of a context; a light predictor is
    asked for each block by its positions. Targets are the teacher's tokens, each normalised over its features. The error is a mean
    over the blocks of a mask, then over masks.

    Collapsed features reach the lowest loss, 0, too: targets whose spread over tokens, target_std, is below 0.1 have collapsed.

    Args:
        config: settings. Masks are [B, 1 + M, T] bool: the context, and M blocks of equal size; or [B, T]: one block.
        predictor: predicts features at places.
        momentum: of the teacher.
    """

    reduction = Reduction.LOCAL
    accepts_absent = True

    def __init__(self, config: JepaConfig, predictor: PlacesPredictor, momentum: Momentum) -> None:
        super().__init__()
        self.modality, self.view, self.masks = config.modality, config.view, config.masks
        self.alone, self.beta, self.evaluate = config.teacher_sees == "block", config.beta, config.evaluate
        self.predictor, self.momentum = predictor, momentum

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
        """The teacher, or the student where the config says so."""
        return {self.modality: self.evaluate}

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
        contexts = [context for context, _ in places]
        seen = ctx.features(batch, self.modality, [name] * len(places), keep=contexts)
        wanted = self._targets(batch, ctx, [blocks for _, blocks in places])
        errors, predicted = [], []
        for features, (context, blocks), target in zip(seen, places, wanted, strict=True):
            prediction = at_least_float32(self.predictor(features.tokens, context, blocks)).flatten(
                1, 2
            )  # [B, M * n, D]
            errors.append(place_error(prediction, target, self.beta))
            predicted.append(prediction.detach())
        found: Latents = {"error": torch.stack(errors).mean(0), **presence}
        for kind, x in (("target", torch.cat(wanted, 1)), ("prediction", torch.cat(predicted, 1))):
            everywhere = x.new_ones(x.shape[:2], dtype=torch.bool)
            found |= {f"{kind}_sums": masked_sums(x, everywhere), f"{kind}s": everywhere.sum(1)}
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

    def _targets(self, batch: Batch, ctx: StepContext, places: Sequence[Tensor]) -> list[Tensor]:
        """The teacher's normalised tokens [B, M * n, D] at the places [B, M, n] of the blocks of each mask."""
        name, found = f"{self.view}0", []
        if self.alone:
            each = [block for blocks in places for block in blocks.unbind(1)]
            seen = iter(ctx.features(batch, self.modality, [name] * len(each), network="teacher", keep=each))
            for blocks in places:
                found.append(torch.cat([_tokens(next(seen)) for _ in range(blocks.shape[1])], 1))
        else:
            (whole,) = ctx.features(batch, self.modality, [name], network="teacher")
            for blocks in places:
                at = blocks.flatten(1)[..., None].expand(-1, -1, _tokens(whole).shape[2])
                found.append(_tokens(whole).gather(1, at))
        return [F.layer_norm(x, x.shape[-1:]) for x in found]

    def _places(self, masks: Tensor, kind: str, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """The places of the context [B, C] and of the blocks [B, M, n], int64."""
        tokens = self.predictor.tokens
        if masks.ndim == 2 and masks.dtype == torch.bool:
            masks = torch.stack([~masks, masks], 1)
        if masks.dtype != torch.bool or masks.ndim != 3 or masks.shape[1] < 2 or masks.shape[2] != tokens:
            raise ValueError(
                f"got masks {masks.dtype} {list(masks.shape)} from modalities.{self.modality}.views.{kind}, wanted bool "
                f"[B, 1 + blocks, {tokens}] or [B, {tokens}] for the tokens of its encoder: give the view their grid"
            )
        here = masks if present is None else masks[present]
        context, blocks = (equal_count(part, kind) for part in (here[:, :1], here[:, 1:]))
        order = (~masks).byte().argsort(dim=-1, stable=True)  # the places of a mask first
        return order[:, 0, :context], order[:, 1:, :blocks]


def _tokens(features: Features) -> Tensor:
    assert features.tokens is not None
    return at_least_float32(features.tokens)
