"""wav2vec 2.0: at masked frames, find the quantised features of the frame among those of the other masked frames of the sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.core.schedules import Bounds, Schedule, Scheduled
from mmssl.losses.wav2vec2 import code_diversity, code_perplexity, masked_contrast
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, encoder_of, equal_count
from mmssl.objectives.parts.gumbel import GumbelQuantizer, gumbel_noise
from mmssl.objectives.parts.presence import zero_absent


class Wav2Vec2Config(ObjectiveConfig):
    """Settings of wav2vec 2.0 for one modality; see `Wav2Vec2Objective`.

    Attributes:
        modality: modality of the encoder to train, a transformer.
        view: kind of view that is masked.
        mask: kind of view with its masked tokens, equally many in each sample: `spans`.
        groups: G, groups of codes. wav2vec 2.0: 2.
        codes: V, codes of a group. wav2vec 2.0: 320.
        embedding: size of contexts and quantised features that are compared, a multiple of the groups. wav2vec 2.0: 256.
        temperature: divisor of the cosines. wav2vec 2.0: 0.1.
        gumbel_temperature: of the choice of codes. wav2vec 2.0: exponential from 2 to 0.5.
        diversity: weight of the loss of unused codes. wav2vec 2.0: 0.1.
        penalty: weight of the mean square of embedded tokens. wav2vec 2.0: 10.
    """

    kind: Literal["wav2vec2"] = "wav2vec2"
    modality: Name
    view: str
    mask: str
    groups: int = Field(default=2, ge=1, le=4)
    codes: int = Field(default=320, ge=2)
    embedding: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.1, gt=0)
    gumbel_temperature: Annotated[Scheduled, Bounds(gt=0)]
    diversity: float = Field(default=0.1, gt=0)
    penalty: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.embedding % self.groups:
            raise ValueError(f"embedding: got {self.embedding}, wanted a multiple of groups {self.groups}")
        return self

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> Wav2Vec2Objective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the modality has no encoder.
        """
        width = encoder_of(encoders, self.modality).width
        return Wav2Vec2Objective(
            self.modality,
            self.view,
            self.mask,
            GumbelQuantizer(width, self.groups, self.codes, self.embedding),
            width,
            self.temperature,
            plan.schedule(self.gumbel_temperature, "gumbel_temperature"),
            self.diversity,
            self.penalty,
        )


class Wav2Vec2Objective(Objective):
    """wav2vec 2.0: contrast of the encoder's output at masked tokens with quantised inputs, and diversity of the codes.

    Baevski et al. 2020 (arXiv:2006.11477). Targets are the encoder's own embedded tokens before masks, quantised; distractors are
    all other masked tokens of the sample, where the paper draws 100. Gumbel noise is a function of step and sample, so that it
    does not depend on processes; in evaluation there is none. A collapsed codebook has a code_perplexity of G.

    Args:
        modality: modality of the encoder to train.
        view: kind of view that is masked.
        mask: kind of view with the mask [B, T].
        quantizer: quantises embedded tokens.
        width: D.
        temperature: of the cosines.
        gumbel_temperature: by step.
        diversity: weight of the loss of unused codes.
        penalty: weight of the mean square of embedded tokens.
    """

    reduction = Reduction.STATISTIC
    accepts_absent = True

    def __init__(
        self,
        modality: str,
        view: str,
        mask: str,
        quantizer: GumbelQuantizer,
        width: int,
        temperature: float,
        gumbel_temperature: Schedule,
        diversity: float,
        penalty: float,
    ) -> None:
        super().__init__()
        self.modality, self.view, self.mask, self.quantizer = modality, view, mask, quantizer
        self.temperature, self.gumbel_temperature = temperature, gumbel_temperature
        self.diversity, self.penalty = diversity, penalty
        embedding = quantizer.codes.shape[0] * quantizer.codes.shape[2]
        self.project = nn.Linear(width, embedding)
        self.project_codes = nn.Linear(embedding, embedding)
        self.mask_token = nn.Parameter(torch.empty(width).uniform_())

    def needs(self) -> Needs:
        """One view and one mask."""
        return {self.modality: {self.view: 1, self.mask: 1}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, replacing tokens (mask_replace), embedded tokens, attention in both directions."""
        wanted = {Encoder.TOKENS, Encoder.MASK_REPLACE, Encoder.EMBEDDED, Encoder.BIDIRECTIONAL}
        return {self.modality: frozenset(wanted)}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that masks are those of the encoder's tokens."""
        self.encode(batch, ctx)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Contrast "error" [B] and hits [B], code probabilities summed over masked tokens [B, G, V], their number, and squares [B].

        Raises:
            ValueError: masks are not of the encoder's tokens, or differ in their number of tokens.
        """
        presence, mask = ctx.presence(batch, self.modality), batch.view(self.modality, f"{self.mask}0")
        wanted = (len(batch), math.prod(ctx.encoders[self.modality].grid or ()))
        if mask.dtype != torch.bool or mask.shape != wanted:
            raise ValueError(
                f"got masks {mask.dtype} {list(mask.shape)} from modalities.{self.modality}.views.{self.mask}, wanted bool "
                f"{list(wanted)} for the tokens of the view {self.view!r}: give it the encoder's number of tokens"
            )
        (features,) = ctx.features(batch, self.modality, [f"{self.view}0"], replace=([mask], self.mask_token))
        assert features.tokens is not None
        assert features.embedded is not None
        here = mask if "present" not in presence else mask[presence["present"]]
        count = equal_count(here[:, None], self.mask)
        places = (~mask).byte().argsort(dim=-1, stable=True)[:, :count]
        with torch.autocast(mask.device.type, enabled=False):
            embedded = at_least_float32(features.embedded)
            context = self.project(_at(at_least_float32(features.tokens), places))
            found = self.quantizer(
                _at(embedded, places), self._noise(batch, ctx, count), self.gumbel_temperature(ctx.step)
            )
            quantised = self.project_codes(found.features)
            error, hits = masked_contrast(context, quantised, found.codes, self.temperature)
        latents: Latents = {
            "error": error,
            "hits": hits,
            "codes": found.probabilities.sum(1),
            "count": torch.full_like(batch.index, count),
            "square": embedded.square().mean((1, 2)),
            **presence,
        }
        return zero_absent(latents)

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """Terms of contrast, of diversity, and with a penalty that of embedded tokens; metrics: accuracy, perplexity of codes."""
        present = Present(latents)
        here = {name: present.rows(x) for name, x in latents.items() if name != "present"}
        groups, codes = here["codes"].shape[1:]
        perplexity = code_perplexity(here["codes"], here["count"])
        terms = {
            "contrast": distributed.mean(here["error"]),
            "diversity": self.diversity * code_diversity(perplexity, codes),
        }
        if self.penalty:
            terms["penalty"] = self.penalty * distributed.mean(here["square"])
        hits, used, count = here["hits"].detach(), perplexity.detach().sum(), here["count"]

        def measure() -> dict[str, Tensor]:
            right, rows = distributed.sum_and_count(hits)
            frames, _ = distributed.sum_and_count(count.to(hits.dtype))
            return {
                "accuracy": right / rows.clamp(min=1),
                "code_perplexity": used,
                "code_perplexity_least": torch.full_like(used, 1.05 * groups),
                "chance_loss": (frames / rows.clamp(min=1)).clamp(min=math.e).log(),
            }

        return LossOutput(present.terms(terms), measure)

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """Accuracy, and the perplexity of codes; chance is the contrast of a guess."""
        return Headline(scalars["chance_loss"], {name: scalars[name] for name in ("accuracy", "code_perplexity")})

    def _noise(self, batch: Batch, ctx: StepContext, count: int) -> Tensor:
        groups, codes, _ = self.quantizer.codes.shape
        if not self.training:
            return torch.zeros(len(batch), count, groups * codes, device=batch.index.device)
        seed = ctx.generator("gumbel").initial_seed()
        return gumbel_noise(batch.index, seed, count, groups * codes)


def _at(x: Tensor, places: Tensor) -> Tensor:
    """Tokens [B, M, D] of [B, T, D] at places [B, M]."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
