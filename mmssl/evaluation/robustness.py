"""Robustness: scores under corruptions, at other sizes and lengths, and of averaged views (test-time augmentation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from operator import methodcaller
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.data.modalities.corruptions.corruption import SEVERITIES
from mmssl.data.modalities.corruptions.views import GROUPS, corrupted, corruptions_of
from mmssl.data.modality import Modality, View
from mmssl.evaluation.common import EvaluatorConfig

Average = Literal["flip", "five_crops", "ten_crops"]
LARGER = 8 / 7
"""Side of the view that five crops are taken from over that of a crop: 256 to 224."""


class ViewedConfig(EvaluatorConfig):
    """Settings of evaluators whose views can be changed.

    Attributes:
        sizes: modality -> pixels of a side of its views, other than the model was trained with: resolution shift. Encoders must
            accept them.
        lengths: modality -> length of its views over the usual one, such as 0.5: the middle half of the frames or of the sound, at
            the usual rate, or the first half of the words of each caption. Encoders must accept them.
        average: modality -> test-time augmentation: the features (or embeddings, of norm 1) of several views are averaged: "flip":
            the view and its mirror image; "five_crops": corners and centre, from a view whose side is 8/7 of a crop's; "ten_crops":
            these and their mirror images.
    """

    sizes: dict[str, Annotated[int, Field(ge=8)]] = Field(default_factory=dict)
    lengths: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    average: dict[str, Average] = Field(default_factory=dict)

    def viewed(self, modalities: Mapping[str, Modality], measured: Sequence[str]) -> dict[str, Modality]:
        """The modalities, with changed views "eval".

        Args:
            modalities: by name.
            measured: those whose views the evaluator makes.

        Raises:
            RecipeError: a modality that is not measured, or whose views have no such size.
        """
        changed = dict(modalities)
        for key, changes in (("sizes", self.sizes), ("lengths", self.lengths), ("average", self.average)):
            for name in changes:
                if name not in measured or name not in modalities:
                    raise RecipeError(
                        f"{key}: got {name!r}{did_you_mean(name, measured)}, wanted what is measured: {sorted(measured)}"
                    )
        for name, size in self.sizes.items():
            changed[name] = _with_view(changed[name], f"sizes.{name}", methodcaller("resized", size))
        for name, share in self.lengths.items():
            changed[name] = _with_view(changed[name], f"lengths.{name}", methodcaller("lasting", share))
        for name, kind in self.average.items():
            pixels = changed[name].view("eval").pixels
            if pixels is None:
                raise RecipeError(f"average.{name}: got {kind}, and its views are no pictures: leave it out")
            if kind != "flip":
                size = round(pixels * LARGER)
                changed[name] = _with_view(changed[name], f"average.{name}", methodcaller("resized", size))
        return changed

    def averaged(self, model: EmbeddingModel) -> EmbeddingModel:
        """The model, which averages over several views of a modality if that is asked for."""
        return AveragedModel(model, self.average) if self.average else model


class RobustConfig(ViewedConfig):
    """Settings of evaluators that measure robustness too.

    Attributes:
        corruptions: corruptions to measure under too, at five severities, five passes over the test samples each. Of pictures and
            clips: gaussian_noise, shot_noise, impulse_noise, gaussian_blur, brightness, contrast, pixelate, jpeg ("common"), and
            mosaic, glitched, vertical_lines, geometric_shapes, stickers, luminance_checkerboard ("unnatural", LAION-C's kinds); of
            clips: frame_rate, frame_drop; of sounds: white_noise, pink_noise, reverb, clipping, gain, compression (of loudness),
            quantisation, low_pass, high_pass, and mp3, opus, aac ("codecs"); of texts: typos, deleted_letters, doubled_letters,
            swapped_letters, casing. Or ["all"].
    """

    corruptions: tuple[str, ...] = ()

    def corrupted_modalities(
        self, modalities: Mapping[str, Modality], names: Sequence[str]
    ) -> dict[tuple[str, int], dict[str, Modality]]:
        """(corruption, severity) -> the modalities, of which those named are corrupted if they have it.

        Raises:
            RecipeError: a corruption that none of them has.
        """
        known = {kind: name for name in reversed(names) for kind in corruptions_of(modalities[name])}
        kinds: dict[str, None] = {}
        for given in self.corruptions:
            meant = [kind for kind in GROUPS.get(given, (given,)) if kind in known]
            if not meant:
                where = " or ".join(map(repr, names))
                raise RecipeError(
                    f"corruptions: got {given!r} for {where}{did_you_mean(given, known)}, wanted {sorted(known) or 'none'}"
                )
            kinds |= dict.fromkeys(meant)
        return {
            (kind, severity): {**modalities, known[kind]: corrupted(modalities[known[kind]], kind, severity)}
            for kind in kinds
            for severity in SEVERITIES
        }


class AveragedModel(EmbeddingModel):
    """A model whose features and embeddings of some modalities are means over several views of each.

    Args:
        model: shares its encoders and heads.
        kinds: modality -> which views.
    """

    def __init__(self, model: EmbeddingModel, kinds: Mapping[str, Average]) -> None:
        super().__init__(model.encoders, model.heads, model.logit_scales)  # type: ignore[arg-type]
        self.kinds = dict(kinds)

    def features(self, modality: str, x: Tensor) -> Tensor:
        """Mean features [B, D]."""
        if modality not in self.kinds:
            return super().features(modality, x)
        return torch.stack(
            [super(AveragedModel, self).features(modality, one) for one in self._views(modality, x)]
        ).mean(0)

    def features_and_embeddings(self, modality: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean features [B, D], and mean embeddings [B, E], of norm 1 again."""
        if modality not in self.kinds:
            return super().features_and_embeddings(modality, x)
        each = [super(AveragedModel, self).features_and_embeddings(modality, one) for one in self._views(modality, x)]
        features, embeddings = (torch.stack(rows).mean(0) for rows in zip(*each, strict=True))
        return features, F.normalize(embeddings, dim=-1)

    def _views(self, modality: str, x: Tensor) -> list[Tensor]:
        return views_to_average(self.kinds[modality], x)


def views_to_average(kind: Average | None, x: Tensor) -> list[Tensor]:
    """The views of pictures or clips [..., H, W] whose features are averaged; None: themselves."""
    crops = [x] if kind in (None, "flip") else five_crops(x)
    return crops if kind in (None, "five_crops") else [*crops, *(one.flip(-1) for one in crops)]


def five_crops(x: Tensor) -> list[Tensor]:
    """Corners and centre of pictures [..., H, W]: five of 7/8 of each side, rounded."""
    height, width = (round(side / LARGER) for side in x.shape[-2:])
    bottom, right = x.shape[-2] - height, x.shape[-1] - width
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return [x[..., top : top + height, left : left + width] for top, left in corners]


def _with_view(modality: Modality, key: str, change: Callable[[View], View]) -> Modality:
    try:
        view = change(modality.view("eval"))
    except ValueError as error:
        raise RecipeError(f"{key}: {error}") from error
    other = copy(modality)
    other.views = {**modality.views, "eval": view}
    return other
