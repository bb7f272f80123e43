"""Masks of the tokens of sounds: on the grid of a spectrogram's patches, or on a sequence of frames."""

from __future__ import annotations

from abc import ABC
from typing import Annotated

from pydantic import Field

from mmssl.core.config import Entries
from mmssl.data.modalities.masks.blocks import BlocksLaw, InverseBlocksLaw
from mmssl.data.modalities.masks.jepa import JepaLaw
from mmssl.data.modalities.masks.law import TokenLaw
from mmssl.data.modalities.masks.order import OrderLaw
from mmssl.data.modalities.masks.spans import SpansLaw
from mmssl.data.modality import View

Side = Annotated[int, Field(ge=1)]


class TokenSequence(TokenLaw, ABC):
    """Sequence of tokens of a sound.

    Attributes:
        tokens: number of tokens of the encoder; of patches: rows over the filters times columns over time.
    """

    tokens: int = Field(ge=2)

    def build(self, *form: object) -> View:
        """Build the view; it does not depend on the lengths of sounds.

        Raises:
            ValueError: the law does not fit the sequence.
        """
        return self.view((1, self.tokens))


class SpectrogramGrid(TokenLaw, ABC):
    """Grid of the patches of a spectrogram.

    Attributes:
        grid: rows over the filters and columns over time of the encoder's patches.
    """

    grid: Annotated[tuple[Side, Side], Entries(("rows", "columns"))]

    def build(self, *form: object) -> View:
        """Build the view; it does not depend on the lengths of sounds.

        Raises:
            ValueError: the law does not fit the grid.
        """
        return self.view(self.grid)


class SoundOrderConfig(OrderLaw, TokenSequence):
    """Random permutation of the patches of a spectrogram, for masking objectives, which keep the first or the last ones."""


class SpansConfig(SpansLaw, TokenSequence):
    """Mask of random spans of frames (wav2vec 2.0, HuBERT, data2vec), for encoders with tokens over time alone; see `SpansLaw`."""


class SoundBlocksConfig(BlocksLaw, SpectrogramGrid):
    """Mask of random blocks of patches (BEiT); see `BlocksLaw`."""


class SoundInverseBlocksConfig(InverseBlocksLaw, SpectrogramGrid):
    """Mask of all patches but those of random squares (EAT: side 5); see `InverseBlocksLaw`."""


class SoundJepaConfig(JepaLaw, SpectrogramGrid):
    """Context of patches and blocks of patches to predict (I-JEPA); see `JepaLaw`."""
