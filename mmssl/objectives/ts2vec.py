"""TS2Vec: two overlapping crops of each series agree at every time that they share, and at coarser scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.objective import Headline, Latents, LossOutput, Objective, Reduction
from mmssl.core.plan import Plan
from mmssl.core.presence import Present
from mmssl.losses.ts2vec import loss_of_equal, ts2vec
from mmssl.objectives.common import Name, ObjectiveConfig, encoder_of


class Ts2VecConfig(ObjectiveConfig):
    """Settings of TS2Vec for one modality with a time axis; see `Ts2VecObjective`.

    Attributes:
        modality: modality of the encoder to train.
        view: kind of the window from which both crops are cut; the window's own random start shifts them in each sample.
        mask: kind of the view with the masks of both crops [B, T]. TS2Vec masks each time with probability 0.5, which
            `{kind: spans, length: 1}` does in exact numbers.
    """

    kind: Literal["ts2vec"] = "ts2vec"
    modality: Name
    view: str
    mask: str

    def build(self, encoders: Mapping[str, Encoder], plan: Plan) -> Ts2VecObjective:
        """Build the objective for these encoders.

        Raises:
            ValueError: there is no encoder, or its tokens are not those of at least two times.
        """
        grid = encoder_of(encoders, self.modality).grid
        if grid is None or len(grid) != 1 or grid[0] < 2:
            raise ValueError(
                f"ts2vec needs an encoder for {self.modality!r} with tokens of at least two times, and encoders.{self.modality} "
                f"has the grid {grid}: use one of kind series_conv or series_transformer"
            )
        return Ts2VecObjective(self.modality, self.view, self.mask, grid[0])


class Ts2VecObjective(Objective):
    """TS2Vec: hierarchical contrast of two overlapping crops, of which random times are masked.

    Yue et al. 2022 (arXiv:2106.10466), section 2. The crops are drawn once for the batch, as there; their place in each series is
    that of its window. Masked times are zeros after the input projection. There is no head: tokens are compared as they are.

    Args:
        modality: modality of the encoder to train.
        view: kind of the window.
        mask: kind of the masks of the tokens.
        tokens: T of a whole window.
    """

    reduction = Reduction.GATHER
    least_samples = 2
    accepts_absent = True

    def __init__(self, modality: str, view: str, mask: str, tokens: int) -> None:
        super().__init__()
        self.modality, self.view, self.mask, self.tokens = modality, view, mask, tokens

    def needs(self) -> Needs:
        """A window, and two masks of its tokens."""
        return {self.modality: {self.view: 1, self.mask: 2}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        """Encoder capabilities: tokens, and replacing tokens (mask_replace)."""
        return {self.modality: frozenset({Encoder.TOKENS, Encoder.MASK_REPLACE})}

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        """Check that windows and masks have the times of the encoder."""
        self._windows(batch)

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        """Tokens [B, T', D] of the shared times from both crops, "0" and "1".

        Raises:
            ValueError: masks or windows of other times than the encoder's.
        """
        x, masks, size = self._windows(batch)
        first, second = draw_crops(self.tokens, ctx.generator("ts2vec"))
        shared = first[1] - second[0]
        crops = {name: x[..., start * size : stop * size] for name, (start, stop) in (("0", first), ("1", second))}
        cut = replace(batch, views={**batch.views, self.modality: crops})
        masks = [mask[:, start:stop] for mask, (start, stop) in zip(masks, (first, second), strict=True)]
        hidden = torch.zeros((), device=x.device)
        a, b = ctx.features(cut, self.modality, ["0", "1"], replace=(masks, hidden), together=False)
        assert a.tokens is not None
        assert b.tokens is not None
        return {"0": a.tokens[:, -shared:], "1": b.tokens[:, :shared], **ctx.presence(batch, self.modality)}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        """One loss term; metric: the loss of a collapsed encoder, whose tokens are all equal."""
        present = Present(latents, self.least_samples)
        a, b = present.rows(latents["0"]), present.rows(latents["1"])
        all_a, all_b = present.gather(a), present.gather(b)
        loss = ts2vec(a, b, all_a=all_a, all_b=all_b, offset=present.offset(a))
        series, times, like = max(len(all_a), 1), a.shape[1], loss.detach()
        return LossOutput({"ts2vec": loss}, lambda: {"chance_loss": like.new_tensor(loss_of_equal(series, times))})

    def headline(self, scalars: Mapping[str, float]) -> Headline:
        """The loss beside that of a collapsed encoder."""
        return Headline(scalars["chance_loss"], {"below chance": scalars["chance_loss"] - scalars["loss"]})

    def _windows(self, batch: Batch) -> tuple[Tensor, list[Tensor], int]:
        """The windows [B, ..., samples], the masks of both crops [B, T], and the number of samples of a token."""
        x = batch.view(self.modality, f"{self.view}0")
        masks = [batch.view(self.modality, f"{self.mask}{number}") for number in range(2)]
        if x.shape[-1] % self.tokens or any(mask.shape != (len(x), self.tokens) for mask in masks):
            raise ValueError(
                f"got windows {list(x.shape)} and masks {list(masks[0].shape)} from modalities.{self.modality}.views.{self.view} "
                f"and .{self.mask}, wanted a multiple of {self.tokens} samples and masks [B, {self.tokens}], the encoder's "
                f"number of tokens: set `tokens` of {self.mask!r}, and the same seconds and rate in modality and encoder"
            )
        return x, masks, x.shape[-1] // self.tokens


def draw_crops(tokens: int, random: torch.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """Draw two crops (first token, token after the last) that share at least two tokens, as the code of TS2Vec does.

    The shared length is uniform, then its place, then how far the first crop begins before it and the second ends after it.
    """

    def below(stop: int) -> int:
        return int(torch.randint(stop, (), generator=random))

    shared = 2 + below(tokens - 1)
    left = below(tokens - shared + 1)
    start, stop = below(left + 1), left + shared + below(tokens - left - shared + 1)
    return (start, left + shared), (left, stop)
