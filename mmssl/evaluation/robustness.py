"""Robustness: scores under corruptions, at other sizes and lengths, and of averaged views (test-time augmentation)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from operator import methodcaller
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import RecipeError, did_you_mean
from mmssl.core.evaluator import Score, Table
from mmssl.data.modalities.corruptions.corruption import SEVERITIES
from mmssl.data.modalities.corruptions.views import GROUPS, corrupted, corruptions_of
from mmssl.data.modality import Modality, View
from mmssl.evaluation.collect import KeptShards
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.evaluation.statistics import clustered_bootstrap, share_by_cluster

log = logging.getLogger(__name__)

Average = Literal["flip", "five_crops", "ten_crops"]
LARGER = 8 / 7
"""Side of the view that five crops are taken from over that of a crop: 256 to 224."""

FEWEST_RIGHT = 10
"""Samples that a ratio to the share of right ones needs, so that hardly a bootstrap draw has none (exp(-10))."""


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


class Figure(NamedTuple):
    """A score that is a share of right answers.

    Attributes:
        value: the score. low, high: its 95 % interval. n: number of samples or queries.
        keys: [n], of the sample of each answer. outcomes: [n], from 0 (wrong) to 1 (right); the score is their mean.
    """

    value: float
    low: float
    high: float
    n: int
    keys: Sequence[Score]
    outcomes: Tensor

    @classmethod
    def of(cls, scores: Mapping[str, Any], metric: str, keys: Sequence[Score], outcomes: Tensor) -> Figure:
        """A metric among scores, with its interval, and the answers that it is the mean of."""
        interval = scores[f"{metric}_ci95_low"], scores[f"{metric}_ci95_high"]
        return cls(scores[metric], *interval, len(keys), keys, outcomes.cpu())


class CorruptedShards:
    """The test shards of an evaluator, once for each corruption and severity; each is opened when it is measured.

    Args:
        config: settings. modalities: by name.
        names: modalities to collect. corruptible: those of them that are corrupted.
    """

    def __init__(
        self,
        config: RobustConfig,
        modalities: Mapping[str, Modality],
        names: Sequence[str],
        corruptible: Sequence[str],
    ) -> None:
        self._each = {
            which: (
                next(name for name in corruptible if changed[name] is not modalities[name]),
                KeptShards(config, changed, names, config.shards, config.max_samples, hashed=True),
            )
            for which, changed in config.corrupted_modalities(modalities, corruptible).items()
        }

    def measure(
        self,
        figures: Callable[[KeptShards], Mapping[str, Figure]],
        clean: Mapping[str, Figure],
        inputs: Mapping[str, Tensor],
    ) -> tuple[dict[str, Score], dict[str, Table]]:
        """Figures under each corruption.

        Scores: METRIC_<corruption>_<severity>; METRIC_<corruption>, their mean over severities; METRIC_corrupted, the mean of all;
        METRIC_kept, that as a share of METRIC. Means and share have intervals by bootstrap over samples: what severities and
        corruptions of a sample have in common is kept together. Chance of all but the share is that of METRIC. A corruption that
        changes no input, such as `casing` before a tokenizer that makes lower case, has no score (None), is left out of the means,
        and is named in corruptions_without_effect.

        Args:
            figures: shards -> metric -> its figure; all processes say the same.
            clean: metric -> its figure without corruption.
            inputs: modality -> hashes of the inputs without corruption, see `KeptShards.inputs`.

        Returns:
            scores, and a table "corruptions" with intervals and the share of inputs that were `changed`; both empty without
            corruptions.
        """
        found, changed = [], []
        for which, (name, shards) in self._each.items():
            try:
                found.append((which, figures(shards)))
                changed.append(changed_share(inputs[name], shards.inputs[name]))
            finally:
                shards.close()
        if not found:
            return {}, {}
        columns: dict[str, list[Score]] = {
            "corruption": [kind for (kind, _), _ in found],
            "severity": [severity for (_, severity), _ in found],
            "changed": [*changed],
        }
        scores = _without_effect([which for (which, _), share in zip(found, changed, strict=True) if not share])
        for metric in found[0][1]:
            each = {which: some[metric] for (which, some), share in zip(found, changed, strict=True) if share}
            scores |= _mean(f"{metric}_corrupted", [*each.values()])
            scores |= _kept(f"{metric}_kept", [*each.values()], clean.get(metric))
            for kind in dict.fromkeys(kind for (kind, _), _ in found):
                scores |= _mean(f"{metric}_{kind}", [figure for (own, _), figure in each.items() if own == kind])
            rows = [each.get(which) for which, _ in found]
            scores |= {
                f"{metric}_{kind}_{s}": row.value if row else None
                for ((kind, s), _), row in zip(found, rows, strict=True)
            }
            columns |= {
                metric: [row.value if row else None for row in rows],
                f"{metric}_ci95_low": [row.low if row else None for row in rows],
                f"{metric}_ci95_high": [row.high if row else None for row in rows],
                f"{metric}_n": [some[metric].n for _, some in found],
            }
        return scores, {"corruptions": Table(columns)}


def changed_share(before: Tensor, after: Tensor) -> float:
    """Share of the inputs whose hashes [n] differ; 1 where they are not equally many."""
    return float((before != after).double().mean()) if before.shape == after.shape else 1.0


def _without_effect(without: Sequence[tuple[str, int]]) -> dict[str, Score]:
    """The score that names the corruptions and severities that changed no input, if there are any; says so, too."""
    severities: dict[str, list[int]] = {}
    for kind, severity in without:
        severities.setdefault(kind, []).append(severity)
    said = "; ".join(f"{kind} {', '.join(map(str, some))}" for kind, some in severities.items())
    if said:
        log.warning("corruptions that changed no input, and have no score therefore (with severities): %s", said)
    return {"corruptions_without_effect": said} if said else {}


def _mean(name: str, figures: Sequence[Figure]) -> dict[str, Score]:
    """The mean of figures of the same samples, with its interval; None: there are none."""
    if not figures:
        return {name: None}
    outcomes = torch.cat([figure.outcomes for figure in figures])
    found = share_by_cluster(outcomes, _owners([key for figure in figures for key in figure.keys]))
    return dict(zip((name, f"{name}_ci95_low", f"{name}_ci95_high"), found, strict=True))


def _kept(name: str, figures: Sequence[Figure], clean: Figure | None) -> dict[str, Score]:
    """The mean of figures as a share of another of the same samples, with its interval; None: that is 0, or not measured.

    Below `FEWEST_RIGHT` samples that are right without corruption there is no interval: some draws have none of them.
    """
    if clean is None or not clean.value or not figures:
        return {name: None}
    owner = _owners([key for figure in (clean, *figures) for key in figure.keys])
    before = torch.zeros(int(owner.max()) + 1, dtype=torch.float64)
    after = torch.zeros_like(before)
    n, outcomes = len(clean.keys), torch.cat([figure.outcomes for figure in figures]).double()
    before.index_add_(0, owner[:n], clean.outcomes.double())
    after.index_add_(0, owner[n:], outcomes)
    scores: dict[str, Score] = {name: float(outcomes.mean()) / clean.value}
    if int((before > 0).sum()) < FEWEST_RIGHT:
        return scores
    low, high = clustered_bootstrap(after, before * len(figures))
    return scores | {f"{name}_ci95_low": low, f"{name}_ci95_high": high}


def _owners(keys: Sequence[Score]) -> Tensor:
    """A number for each distinct key: [n] int64."""
    numbers: dict[Score, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


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
