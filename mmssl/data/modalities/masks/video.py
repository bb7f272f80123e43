"""Masks of the tokens of clips and frames: a law of each kind on the grid of places, alike at all times."""

from __future__ import annotations

from abc import ABC
from typing import Self

from pydantic import Field, model_validator

from mmssl.data.modalities.masks.blocks import BlocksLaw, InverseBlocksLaw
from mmssl.data.modalities.masks.jepa import JepaLaw
from mmssl.data.modalities.masks.law import GridShape, TokenLaw
from mmssl.data.modalities.masks.order import OrderLaw, TokenOrder
from mmssl.data.modalities.views.video import Span
from mmssl.data.modality import View


class TubeletGrid(TokenLaw, ABC):
    """Grid of the tokens of a clip, in reading order: times, rows, columns.

    Attributes:
        patch_size: side of a patch in pixels; divides the size of the view.
        size: height and width of the masked view in pixels; None: the modality's.
        tubelet: number of frames of a token; divides the frames of views. None: the view is one frame.
    """

    patch_size: int = Field(ge=1)
    size: int | None = Field(default=None, ge=8)
    tubelet: int | None = Field(default=None, ge=1)

    def build(self, span: Span) -> View:
        """Build the view, for views of this span, unless its settings have a size.

        Raises:
            ValueError: patches or tubelets that do not divide the views, or a law that does not fit the grid.
        """
        span = span.resized(self.size)
        if span.size % self.patch_size or (self.tubelet and span.frames % self.tubelet):
            raise ValueError(
                f"got patches of {self.patch_size} pixels and tubelets of {self.tubelet or 1} frames, wanted divisors of views of "
                f"{span.size} pixels and {span.frames} frames"
            )
        side = span.size // self.patch_size
        return self.view((side, side), span.frames // self.tubelet if self.tubelet else 1)


class VideoOrderConfig(OrderLaw, TubeletGrid):
    """Random permutation of the tokens of a view, for masking objectives, which keep the first or the last ones.

    Attributes:
        tubes: shuffle places, and keep all times of a place together, so that hidden places are hidden at all times.
    """

    tubes: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tubes and self.tubelet is None:
            raise ValueError(
                "got tubes: true for a view of one frame, where it has no effect: set tubelet, or remove tubes"
            )
        return self

    def view(self, shape: GridShape, times: int = 1) -> TokenOrder:
        """Build the view."""
        return TokenOrder(shape[0] * shape[1], times) if self.tubes else super().view(shape, times)


class VideoBlocksConfig(BlocksLaw, TubeletGrid):
    """Mask of random blocks of places, hidden at all times (BEiT in space); see `BlocksLaw`."""


class VideoInverseBlocksConfig(InverseBlocksLaw, TubeletGrid):
    """Mask of all places but those of random squares, hidden at all times; see `InverseBlocksLaw`."""


class VideoJepaConfig(JepaLaw, TubeletGrid):
    """Context and blocks to predict, through all times (V-JEPA); see `JepaLaw`.

    V-JEPA (arXiv:2404.08471) predicts 8 targets of scale 0.15 and 2 of scale 0.7: two kinds of views, contexts of 0.15 and 0.1.
    """
