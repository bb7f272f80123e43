"""PIRL: a picture and its shuffled tiles both find the picture's row in a bank of all samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.heads.bank import SampleBank
from mmssl.heads.projection import HeadConfig
from mmssl.losses.queue_info_nce import queue_info_nce
from mmssl.objectives.common import Name, ObjectiveConfig, at_least_float32, couples_rows, encoder_of
from mmssl.objectives.parts.tile_tasks import JigsawConfig


class PirlConfig(ObjectiveConfig):
    """Settings of PIRL for one modality of pictures; see `PirlObjective`.

    A checkpoint holds an embedding of every training sample, 0.7 GB for ImageNet. A process holds twice as much: a step that is
    skipped is undone from a copy.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of view of the whole picture.
        tiles: kind of view that is cut into tiles.
        choice: kind of view with the number of the permutation, `{kind: choice, choices: permutations}`.
        jigsaw: the tiles and their permutations.
        negatives: K, rows of the bank that are drawn for each step; a sample's own row is no negative of it. PIRL: 32000.
        temperature: divisor of the cosines. PIRL: 0.07, with an MLP as head 0.1.
        weight: of the tiles' loss; that of the picture has the rest. PIRL: 0.5.
        momentum: share of a row of the bank that stays when its picture comes by. PIRL: 0.5.
        embedding: E. PIRL: 128.
        head: projection head of pictures, and of each tile, not used after training; without batch norm.
    """

    kind: Literal["pirl"] = "pirl"
    modality: Name
    view: str
    tiles: str
    choice: str = "choice"
    jigsaw: JigsawConfig
    negatives: int = Field(ge=1)
    temperature: float = Field(gt=0)
    weight: float = Field(default=0.5, ge=0, le=1)
    momentum: float = Field(default=0.5, ge=0, lt=1)
    embedding: int = Field(default=128, gt=0)
    head: HeadConfig

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> PirlObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: the modality has no encoder, or heads have batch norm.
        """
        width = encoder_of(encoders, self.modality).width
        head, tile_head = (self.head.build(width, self.embedding) for _ in range(2))
        if couples_rows(head):
            raise ValueError("head: got norm: batch, wanted layer or none: tiles of one picture are no batch")
        return PirlObjective(self, head, tile_head, plan.samples)


class PirlObjective(Objective):
    """PIRL: cross entropy of finding a picture's row of the bank among other rows, from the picture and from its shuffled tiles.

    Misra and van der Maaten 2020 (arXiv:1912.01991), with the cross entropy of the authors' later configuration in place of noise
    contrastive estimation. Negatives are drawn for each step, the same for all samples and processes; where the own row is among
    them, it is left out. Tiles are encoded each alone. The bank begins with random unit vectors.

    Args:
        config: the settings.
        head: [B, D] -> [B, E] of pictures.
        tile_head: [B, D] -> [B, E] of each tile.
        samples: training samples of the run.
    """

    reduction = Reduction.LOCAL
    accepts_absent = True

    def __init__(self, config: PirlConfig, head: nn.Module, tile_head: nn.Module, samples: int) -> None:
        super().__init__()
        self.config, self.head, self.tile_head = config, head, tile_head
        self.join = nn.Linear(config.jigsaw.parts * config.embedding, config.embedding)
        self.bank = SampleBank(samples, config.embedding)
        self.bank.rows.copy_(F.normalize(torch.randn_like(self.bank.rows), dim=-1))

    def needs(self) -> Needs:
        """The picture, the picture of the tiles, and the number of their permutation."""
        c = self.config
        return {c.modality: {c.view: 1, c.tiles: 1, c.choice: 1}}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that tiles fit the view, and that the encoder takes them."""
        self.encode(batch, ctx)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Embeddings [B, E] of pictures "image" and of their tiles "tiles", and the "index" of samples [B].

        Raises:
            ValueError: the view is too small for the tiles, or numbers are not below that of the permutations.
        """
        c = self.config
        x, label = (batch.view(c.modality, f"{kind}0") for kind in (c.tiles, c.choice))
        # On a GPU the host would wait for the values.
        if label.ndim != 1 or (label.device.type == "cpu" and int(label.max()) >= c.jigsaw.classes):
            raise ValueError(
                f"got numbers {list(label.shape)} up to {label.max()} from modalities.{c.modality}.views.{c.choice}, wanted "
                f"[B] below {c.jigsaw.classes}: {{kind: choice, choices: {c.jigsaw.classes}}}"
            )
        parts = c.jigsaw.make(x, label, batch.index, ctx.generator("pirl").initial_seed())
        views = {str(number): part.contiguous() for number, part in enumerate(parts)}
        cut = replace(batch, views={**batch.views, c.modality: views})
        (whole,) = ctx.features(batch, c.modality, [f"{c.view}0"], pooled_only=True)
        found = ctx.features(cut, c.modality, [*views], pooled_only=True)
        tiles = self.join(torch.cat([self.tile_head(features.pooled) for features in found], 1))
        return {
            "image": at_least_float32(self.head(whole.pooled)),
            "tiles": at_least_float32(tiles),
            "index": batch.index,
            **ctx.presence(batch, c.modality),
        }

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """Terms of pictures and of tiles; metrics: how often tiles find the own row first, and the chance loss."""
        c, present = self.config, Present(latents)
        index = present.rows(latents["index"])
        drawn = torch.randint(max(1, len(self.bank.rows)), (c.negatives,), generator=ctx.generator("negatives"))
        drawn = drawn.to(index.device)
        own, others, same = self.bank.rows[index], self.bank.rows[drawn], index[:, None] == drawn
        image, tiles = (F.normalize(present.rows(latents[name]), dim=-1) for name in ("image", "tiles"))
        of_image, _ = queue_info_nce(image, own.to(image.dtype), others.to(image.dtype), c.temperature, same)
        of_tiles, hits = queue_info_nce(tiles, own.to(image.dtype), others.to(image.dtype), c.temperature, same)

        def measure() -> dict[str, Tensor]:
            accuracy = distributed.total_detached(hits) / distributed.world_size()
            total, rows = distributed.sum_and_count((1 + (~same).sum(1)).to(hits.dtype).log())
            return {"accuracy": accuracy, "chance_loss": total / rows.clamp(min=1)}

        terms = {"image": (1 - c.weight) * of_image, "tiles": c.weight * of_tiles}
        return LossOutput(terms, measure, {"bank/index": index, "bank/rows": image.detach()})

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        """Move the rows of the pictures of this step."""
        index, rows = latents["bank/index"], latents["bank/rows"]
        self.bank.write(
            index, F.normalize(self.bank.rows[index].to(rows.dtype).lerp(rows, 1 - self.config.momentum), dim=-1)
        )

    def monitored(self) -> Mapping[str, str]:
        """Embeddings of pictures."""
        return {self.config.modality: "image"}

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """How often tiles find their picture first."""
        return Headline(scalars["chance_loss"], {"accuracy": scalars["accuracy"]})
