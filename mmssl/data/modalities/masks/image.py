"""Masks of the patches of pictures: a law of each kind on the grid of patches."""

from __future__ import annotations

from abc import ABC

from pydantic import Field

from mmssl.data.modalities.masks.blocks import BlocksLaw, InverseBlocksLaw
from mmssl.data.modalities.masks.jepa import JepaLaw
from mmssl.data.modalities.masks.law import TokenLaw
from mmssl.data.modalities.masks.order import OrderLaw
from mmssl.data.modality import View


class PatchGrid(TokenLaw, ABC):
    """Grid of the patches of a picture.

    Attributes:
        patch_size: side of a patch in pixels, as in the encoder.
        size: height and width of the masked view in pixels; None: the modality's.
    """

    patch_size: int = Field(ge=1)
    size: int | None = Field(default=None, ge=8)

    def build(self, size: int, *form: object) -> View:
        """Build the view for pictures of `size` pixels, unless its settings have a size; it does not depend on their channels.

        Raises:
            ValueError: the patch size does not divide the size, or the law does not fit the grid.
        """
        size = self.size or size
        if size % self.patch_size:
            raise ValueError(f"got patch_size {self.patch_size}, wanted a divisor of size {size}")
        return self.view((size // self.patch_size, size // self.patch_size))


class ImageOrderConfig(OrderLaw, PatchGrid):
    """Random permutation of the patches of a picture, for masking objectives, which keep the first or the last ones."""


class ImageBlocksConfig(BlocksLaw, PatchGrid):
    """Mask of random blocks of patches (BEiT, data2vec, iBOT, DINOv2); see `BlocksLaw`."""


class ImageInverseBlocksConfig(InverseBlocksLaw, PatchGrid):
    """Mask of all patches but those of random squares (data2vec 2.0); see `InverseBlocksLaw`."""


class ImageJepaConfig(JepaLaw, PatchGrid):
    """Context of patches and blocks of patches to predict (I-JEPA); see `JepaLaw`."""
