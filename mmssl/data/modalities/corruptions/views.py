"""Modalities with a corrupted view "eval": what evaluators measure robustness with.

Corruptions of pictures, clips and sounds act on the view, as in ImageNet-C: on what the encoder sees; those of sentences before
they become tokens. What is random depends on kind and content alone, and is the same at all severities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmssl.core.seeding import fold, generator
from mmssl.data.corruption import Corrupt, Strength, TextCorruption
from mmssl.data.media.lossy import CODECS
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.corruptions.clips import CLIPS
from mmssl.data.modalities.corruptions.common import COMMON, EXTRA
from mmssl.data.modalities.corruptions.measurements import ARRAYS, SERIES
from mmssl.data.modalities.corruptions.pictures import PICTURES
from mmssl.data.modalities.corruptions.sentences import SENTENCES
from mmssl.data.modalities.corruptions.sounds import SOUNDS
from mmssl.data.modalities.corruptions.unnatural import UNNATURAL
from mmssl.data.modality import Modality, View

if TYPE_CHECKING:
    from torch import Tensor

GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(dict.fromkeys((*PICTURES, *CLIPS, *SOUNDS, *SENTENCES, *ARRAYS, *SERIES))),
    "common": (*COMMON,),
    "extra": (*EXTRA,),
    "unnatural": (*UNNATURAL,),
    "codecs": (*CODECS,),
}
"""Name of several corruptions -> those that are meant, as far as a modality has them."""


def corrupted(modality: Modality, kind: str, severity: int) -> Modality:
    """The modality with a corrupted view "eval".

    Args:
        modality: to corrupt.
        kind: one of `modality.corruptions`.
        severity: 1 to 5.
    """
    corruption = modality.corruptions[kind]
    inner = modality.view("eval")
    view: View
    if isinstance(corruption, TextCorruption):
        view = CorruptedSentences(inner, kind, corruption.strengths[severity - 1])
    else:
        corrupt = corruption.function
        if corruption.timed:
            corrupt = partial(corrupt, rate=modality.values_per_second)
        view = CorruptedView(inner, corrupt, corruption.strengths[severity - 1], fold(kind))
    other = copy(modality)
    other.views = {**modality.views, "eval": view}
    return other


class CorruptedView(View):
    """A view, corrupted; of the type and shape of that view.

    Args:
        view: of pictures uint8 [..., 3, H, W], of sounds int16 or float [C, samples], or of arrays and series, float.
        corrupt, strength: what happens to it.
        seed: of what is random, with the content of the view.
    """

    def __init__(self, view: View, corrupt: Corrupt, strength: Strength, seed: int) -> None:
        self.view, self.corrupt, self.strength, self.seed = view, corrupt, strength, seed
        self.pixels = view.pixels

    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Those of the view."""
        return self.view.draw(value, rng)

    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """Make the view, and corrupt it."""
        import torch

        x = self.view(value, parameters)
        content = hashlib.blake2b(x.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        random = torch.Generator().manual_seed(fold(self.seed, content))
        if x.is_floating_point():
            return self.corrupt(x, self.strength, random).to(x.dtype)
        limits = torch.iinfo(x.dtype)
        changed = self.corrupt(x.float() / limits.max, self.strength, random) * limits.max
        return changed.round().clamp(limits.min, limits.max).to(x.dtype)

    def blank(self) -> Tensor:
        """That of the view."""
        return self.view.blank()


class CorruptedSentences(View):
    """Token ids of all captions of a sample, corrupted.

    Args:
        view: of captions.
        kind: of `SENTENCES`; with the caption it decides what is random, at all severities alike.
        strength: of it.
    """

    ragged: ClassVar[bool] = True

    def __init__(self, view: View, kind: str, strength: float) -> None:
        self.view, self.kind, self.strength = view, kind, strength

    def draw(self, value: Captions, rng: np.random.Generator) -> dict[str, Any]:
        """Those of the view."""
        return self.view.draw(value, rng)

    def rewritten(self, text: str) -> str:
        """A caption, corrupted."""
        return SENTENCES[self.kind].function(text, self.strength, generator(self.kind, text))

    def __call__(self, value: Captions, parameters: Mapping[str, Any]) -> Tensor:
        """Rewrite the captions, and make the view."""
        return self.view(value.map(self.rewritten), parameters)

    def blank(self) -> Tensor:
        """That of the view."""
        return self.view.blank()
