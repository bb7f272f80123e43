"""JEPA (I-JEPA, V-JEPA, M2D, data2vec 2.0, EAT): from a context, predict what a teacher says of hidden tokens, at their places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from mmssl.core.batch import Batch, Needs, view_names
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, Features
from mmssl.core.forward import Network
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.schedules import Bounds, Scheduled
from mmssl.core.teacher import Momentum
from mmssl.heads.places_predictors import PlacesPredictor, PlacesPredictorConfig
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of, equal_count
from mmssl.objectives.parts.latent_targets import LatentTargets, Predicted
from mmssl.objectives.parts.noises import normal_noise
from mmssl.objectives.parts.presence import zero_absent
from mmssl.objectives.parts.prototype_targets import PrototypeTargetsConfig
from mmssl.objectives.parts.regression_targets import LastLayerConfig, LayerTargetsConfig

LatentTargetsConfig = Annotated[
    LastLayerConfig | LayerTargetsConfig | PrototypeTargetsConfig, Field(discriminator="kind")
]


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
            mask of random tokens, `{kind: inverse_blocks, side: 1, ratio: 0.7}`; data2vec 2.0 and EAT: `inverse_blocks`.
        draws: number of masks of each kind that are drawn for each sample; they share one pass of the teacher. data2vec 2.0: 8 to
            16; EAT: 16; others: 1.
        predictor: predicts hidden tokens, and is not used after training: `transformer`, where no kind is said (I-JEPA: width 384,
            depth 12 for ViT-H, 6 for ViT-B), or `conv` (data2vec 2.0, EAT).
        teacher_sees: "view": the whole view; "block": the tokens of the block that is predicted alone, as in M2D.
        targets: what is predicted: the teacher's `last` layer, an average of its last `layers` (data2vec 2.0, EAT), or assignments
            to `prototypes` (MaskCLIP).
        beta: difference at which the error turns from squared to absolute. I-JEPA: 1; V-JEPA: 0. null: 2 - 2 cosines of `last`
            targets, as in M2D; the squared error of `layers`, as in data2vec 2.0 and EAT; `prototypes`, which have cross entropy.
        momentum: of the teacher. I-JEPA: linear from 0.996 to 1; V-JEPA: from 0.998 to 1; M2D: from 0.99995 to 0.99999.
        evaluate: the network that is evaluated. I-JEPA and V-JEPA: teacher; M2D, data2vec 2.0, EAT and MaskCLIP: student.
    """

    kind: Literal["jepa"] = "jepa"
    modality: Name
    view: str
    masks: Annotated[tuple[str, ...], AfterValidator(_different)]
    draws: int = Field(default=1, ge=1)
    predictor: PlacesPredictorConfig
    teacher_sees: Literal["view", "block"] = "view"
    targets: LatentTargetsConfig = LastLayerConfig()
    beta: Annotated[float, Field(ge=0)] | None
    momentum: Annotated[Scheduled, Bounds(ge=0, le=1)]
    evaluate: Network = "teacher"

    @model_validator(mode="after")
    def _targets_fit(self) -> Self:
        kind = self.targets.kind
        if self.beta is not None and not self.targets.takes_beta:
            raise ValueError(
                f"beta: got {self.beta:g}, wanted null: targets of kind {kind!r} are compared by cross entropy"
            )
        if self.teacher_sees == "block" and not self.targets.takes_block:
            raise ValueError(
                f"teacher_sees: got block, wanted view: targets of kind {kind!r} are made of all tokens of a sample"
            )
        return self

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> JepaObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: there is no encoder, it has no token grid, or predictor or targets do not fit it.
        """
        encoder = encoder_of(encoders, self.modality)
        if encoder.grid is None:
            raise ValueError(
                f"jepa needs an encoder for {self.modality!r} with a token grid, and {type(encoder).__name__} has none; use a "
                "transformer (kind vit, audio_transformer, series_transformer or space_time)"
            )
        predictor = self.predictor.build(encoder.width, encoder.grid)
        momentum = plan.schedule(self.momentum, "momentum")
        targets = self.targets.build(encoder, self.modality, self.beta, momentum, plan.below("targets"))
        return JepaObjective(self, predictor, targets, momentum)


class JepaObjective(Objective):
    """JEPA: error of what a teacher says of blocks of tokens that the student does not see, predicted at their places.

    Assran et al. 2023 (I-JEPA, arXiv:2301.08243); Bardes et al. 2024 (V-JEPA, arXiv:2404.08471); Niizumi et al. 2022 (M2D,
    arXiv:2210.14648), whose teacher sees nothing but the block; Baevski et al. 2022 (data2vec 2.0, arXiv:2212.07525); Chen et al.
    2024 (EAT, arXiv:2401.03497); Dong et al. 2023 (MaskCLIP, arXiv:2208.12262). The student encodes the tokens of a context; a
    light predictor is asked for each block by its positions. The error is a mean over the blocks of a mask and over its draws, then
    over kinds of masks.

    Collapsed features reach the lowest loss, 0, too: targets whose spread over tokens, target_std, is below 0.1 have collapsed.

    Args:
        config: settings. Masks are [B, 1 + M, T] bool: the context, and M blocks of equal size; or [B, T]: one block.
        predictor: predicts features at places.
        targets: makes targets of the teacher's features, and compares predictions with them.
        momentum: of the teacher.
    """

    accepts_absent = True

    def __init__(
        self, config: JepaConfig, predictor: PlacesPredictor, targets: LatentTargets, momentum: Momentum
    ) -> None:
        super().__init__()
        self.modality, self.view, self.masks, self.draws = config.modality, config.view, config.masks, config.draws
        self.alone, self.evaluate = config.teacher_sees == "block", config.evaluate
        self.predictor, self.targets, self.momentum = predictor, targets, momentum
        self.reduction = Reduction.STATISTIC if targets.couples_samples else Reduction.LOCAL
        self.least_samples = 2 if targets.couples_samples else 1

    def needs(self) -> Needs:
        """One view, and masks of each kind."""
        return {self.modality: {self.view: 1, **dict.fromkeys(self.masks, self.draws)}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, dropping tokens (mask_drop), and hidden layers where they are targets."""
        hidden = {Encoder.HIDDEN} if self.targets.hidden else set()
        mlps = {Encoder.MLPS} if self.targets.mlps else set()
        return {self.modality: frozenset({Encoder.TOKENS, Encoder.MASK_DROP, *hidden, *mlps})}

    def hidden_layers(self) -> Mapping[Network, Mapping[str, int]]:
        """The last layers of the teacher, where they are targets."""
        return {"teacher": {self.modality: self.targets.hidden}} if self.targets.hidden else {}

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
        """Latents of the targets: see `LatentTargets.encode`.

        Raises:
            ValueError: masks are not of the encoder's tokens.
        """
        presence = ctx.presence(batch, self.modality)
        places = [self._places(batch, kind, presence.get("present")) for kind in self.masks]
        contexts = [one for context, _ in places for one in context.unbind()]
        seen = ctx.features(batch, self.modality, [f"{self.view}0"] * len(contexts), keep=contexts)
        whole, wanted = self._wanted(batch, ctx, [blocks for _, blocks in places])
        predicted = []
        for number, ((context, blocks), target) in enumerate(zip(places, wanted, strict=True)):
            features = seen[number * self.draws : (number + 1) * self.draws]
            tokens = torch.cat([_tokens(one) for one in features])
            normal = partial(self._noise, batch.index, ctx, number)
            found = at_least_float32(self.predictor(tokens, context.flatten(0, 1), blocks.flatten(0, 1), normal))
            found = found.reshape(*blocks.shape[:2], -1, found.shape[-1])  # [R, B, M * n, D]
            pooled = at_least_float32(torch.stack([one.pooled for one in features]))
            predicted.append(Predicted(found, target, pooled))
        return zero_absent({**self.targets.encode(predicted, whole), **presence})

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """See `LatentTargets.criterion`."""
        return self.targets.criterion(latents, ctx)

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Let targets move their centre."""
        self.targets.update(latents)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """See `LatentTargets.headline`."""
        return self.targets.headline(scalars)

    def _wanted(self, batch: Batch, ctx: StepContext, places: Sequence[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """Targets of all tokens [B, T, D], None: not known; and those [R, B, M * n, D] at places [R, B, M, n] of each kind."""
        name, targets = f"{self.view}0", self.targets
        if self.alone:
            each = [block for blocks in places for draw in blocks for block in draw.unbind(1)]
            seen = iter(ctx.features(batch, self.modality, [name] * len(each), network="teacher", keep=each))

            def of_draw(count: int) -> Tensor:
                return torch.cat([targets.of(next(seen)) for _ in range(count)], 1)

            return None, [torch.stack([of_draw(draw.shape[1]) for draw in blocks]) for blocks in places]
        layers = targets.hidden
        (features,) = ctx.features(
            batch, self.modality, [name], network="teacher", hidden=layers, mlps=targets.mlps, pooled_only=layers > 0
        )
        whole = targets.of(features)
        at = [blocks.flatten(2)[..., None].expand(-1, -1, -1, whole.shape[2]) for blocks in places]
        return whole, [torch.stack([whole.gather(1, draw) for draw in draws]) for draws in at]

    def _noise(self, index: Tensor, ctx: StepContext, number: int, shape: torch.Size) -> Tensor:
        """Normal numbers [R * B, *shape] for the draws of a kind of mask: a pure function of seed, step, draw and sample."""
        seeds = [ctx.generator(f"predictor/{number}/{draw}").initial_seed() for draw in range(self.draws)]
        return torch.cat([normal_noise(index, seed, shape) for seed in seeds])

    def _places(self, batch: Batch, kind: str, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """The places of the contexts [R, B, C] and of the blocks [R, B, M, n] of a kind of mask, int64."""
        masks = torch.stack([batch.view(self.modality, name) for name in view_names(kind, self.draws)])
        tokens = self.predictor.tokens
        if masks.ndim == 3 and masks.dtype == torch.bool:
            masks = torch.stack([~masks, masks], 2)
        if masks.dtype != torch.bool or masks.ndim != 4 or masks.shape[2] < 2 or masks.shape[3] != tokens:
            raise ValueError(
                f"got masks {masks.dtype} {list(masks.shape[1:])} from modalities.{self.modality}.views.{kind}, wanted bool "
                f"[B, 1 + blocks, {tokens}] or [B, {tokens}] for the tokens of its encoder: give the view their grid, or number"
            )
        # Masks of absent samples are blank ones, and have no effect; where all are absent, they say how many places there are.
        here = masks if present is None or not present.any() else masks[:, present]
        context, blocks = (equal_count(part.flatten(0, 1), kind) for part in (here[:, :, :1], here[:, :, 1:]))
        order = (~masks).byte().argsort(dim=-1, stable=True)  # the places of a mask first
        return order[:, :, 0, :context], order[:, :, 1:, :blocks]


def _tokens(features: Features) -> Tensor:
    assert features.tokens is not None
    return features.tokens
