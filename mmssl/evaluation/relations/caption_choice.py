"""Choice among given captions and pictures, from the files of ARO, SugarCrepe and Winoground."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.config import LocalPath
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError, os_words
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.data.modality import DecodeError, Modality
from mmssl.evaluation.classification import class_mean_interval
from mmssl.evaluation.common import (
    PairEvaluatorConfig,
    broadcast_scores,
    inference,
    require_modalities,
    require_usable,
    warn_of_choices,
)
from mmssl.evaluation.ranking import choice_accuracy
from mmssl.evaluation.relations.base import gather_named
from mmssl.evaluation.relations.caption_files import Box, Example, KeptExamples
from mmssl.evaluation.statistics import resampled_group_means, share_by_cluster, wilson
from mmssl.evaluation.texts import shorten_text

PICTURE, CAPTION = "picture", "caption"


class CaptionChoiceConfig(PairEvaluatorConfig):
    """Settings of the choice among given captions (ARO, SugarCrepe), or captions and pictures (Winoground).

    Attributes:
        pair: pictures, and captions.
        files: JSON files as published, of one layout: SugarCrepe's, `visual_genome_relation.json` and
            `visual_genome_attribution.json` of ARO (whose pictures are cut to their box), or Winoground's `examples.jsonl`.
        pictures: folder of the pictures that they name.
        shards: none; `max_samples` counts examples, and `workers` and `cache` have no effect.
        resamples: number of bootstrap draws (over pictures) for the intervals of choices among captions.
        seed: seed of the bootstrap.
    """

    kind: Literal["caption_choice"] = "caption_choice"
    shards: tuple[str, ...] = Field(default=(), max_length=0)
    files: tuple[LocalPath, ...] = Field(min_length=1)
    pictures: LocalPath
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    @field_validator("shards", mode="before")
    @classmethod
    def _none(cls, shards: object) -> object:
        if shards:
            raise ValueError(f"shards: got {shards!r}, wanted none: this evaluator reads `files` and `pictures`")
        return ()

    def build(self, modalities: Mapping[str, Modality]) -> CaptionChoice:
        require_modalities(modalities, self.pair)
        things, captions = self.pair
        if not modalities[things].visual or not modalities[captions].language:
            raise RecipeError(
                f"pair: got {list(self.pair)} for kind caption_choice, wanted pictures first, and captions second"
            )
        return CaptionChoice(self, modalities)


class CaptionChoice(Evaluator):
    """Accuracy of given choices. Scores: see `choice_scores` and `winoground_scores`, with n, n_skipped and tie_rate.

    Tables: "samples" (one row an example), and "kinds": each score by relation, attributes or tag.
    """

    def __init__(self, config: CaptionChoiceConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self.modalities = {name: modalities[name] for name in config.pair}
        self._examples = KeptExamples(config.files, config.pictures, config.max_samples)
        self.kept = (self._examples,)
        self.headlines = ("acc", "macro_acc", *(f"acc_{file.stem}" for file in config.files), *WINOGROUND)

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in config.pair:
            model.require(name, shared_space=True)
        examples = self._examples.open()
        with inference(model, self.config.precision):
            numbers, rows, skipped = self._embed_share(model, examples)
            skipped = sum(distributed.gather_objects(skipped))
            embedded = gather_named(rows, model.device)
            if not embedded:
                raise DataError(
                    f"no sample has a picture that can be decoded: of {len(examples)}, {skipped} are damaged; check `pictures`"
                )
            owner = distributed.gather_uneven(torch.tensor(numbers, dtype=torch.int64, device=model.device))
            keys = {number: examples[number].name for number in owner.tolist()}
            for name, of in ((PICTURE, config.pair[0]), (CAPTION, config.pair[1])):
                whole = embedded[name].flatten(0, 1)
                owners = owner.repeat_interleave(embedded[name].shape[1])
                require_usable(whole, owners, keys, f"the embedding of {of!r}", unit=True)
            cosines = (embedded[PICTURE][:, :, None] * embedded[CAPTION][:, None]).sum(3)
            scores = broadcast_scores(self._scores([examples[i] for i in owner.tolist()], cosines))
        remedy = (
            f"the words that differ are cut off (`context_length` of {config.pair[1]!r}), or the encoder has collapsed"
        )
        warn_of_choices(f"caption_choice of {list(config.pair)}", float(scores["tie_rate"] or 0), remedy)
        yield from (scores | {"n_skipped": skipped}).items()

    def _embed_share(
        self, model: EmbeddingModel, examples: Sequence[Example]
    ) -> tuple[list[int], dict[str, list[Tensor]], int]:
        """This process' examples that can be read, their embeddings [b, P or 2, E] by name, and the number of others."""
        rank, world = distributed.rank(), distributed.world_size()
        share = range(rank * len(examples) // world, (rank + 1) * len(examples) // world)
        things, captions = self.config.pair
        numbers: list[int] = []
        rows: dict[str, list[Tensor]] = {}
        skipped, size = 0, self.config.batch_size
        for start in range(0, len(share), size):
            views: list[Tensor] = []
            texts: list[str] = []
            for number in share[start : start + size]:
                example = examples[number]
                try:
                    pictures = map(self._view, example.pictures, example.boxes)
                    views.append(torch.stack([*pictures]))
                except (DecodeError, OSError) as error:
                    if self.config.on_error == "raise":
                        raise DataError(
                            f"{example.name}, {' and '.join(map(str, example.pictures))}: {os_words(error)}\n"
                            "To leave such examples out, set `on_error: skip`"
                        ) from error
                    skipped += 1
                    continue
                numbers.append(number)
                texts += example.captions
            for name, modality, made in (
                (PICTURE, things, torch.cat(views) if views else None),
                (CAPTION, captions, self.modalities[captions].tokenize(texts) if texts else None),
            ):
                if made is not None:
                    whole = torch.cat([model.embed(modality, part) for part in torch.split(made, size)])
                    rows.setdefault(name, []).append(whole.view(len(views), -1, whole.shape[1]))
        return numbers, rows, skipped

    def _view(self, path: Path, box: Box | None) -> Tensor:
        modality = self.modalities[self.config.pair[0]]
        return modality.view("eval")(modality.from_input(path if box is None else _cropped(path, box)), {})

    def _scores(self, examples: Sequence[Example], cosines: Tensor) -> dict[str, Score]:
        kinds = [example.kind for example in examples]
        if cosines.shape[1] == 2:
            outcomes, tied = winoground_outcomes(cosines)
            scores = winoground_scores(outcomes)
        else:
            earned, tied = choice_accuracy(cosines[:, 0])
            outcomes = {"acc": earned}
            scores = choice_scores(examples, earned, self.config.resamples, self.config.seed)
        columns = {name: earned.tolist() for name, earned in outcomes.items()}
        names = [example.name for example in examples]
        self.tables = {
            "samples": Table(
                {"key": names, "class": kinds, **columns}, tuple(outcomes), texts=partial(_texts, examples)
            ),
            "kinds": _kinds(kinds, outcomes),
        }
        return scores | {"tie_rate": int(tied.sum()) / len(examples), "n": len(examples)}


def _texts(examples: Sequence[Example]) -> dict[str, list[str]]:
    """The true and the false caption of each example; of two pictures the first one's and the second one's."""
    true, other = zip(*(example.captions for example in examples), strict=True)
    return {"text": [*map(shorten_text, true)], "other_text": [*map(shorten_text, other)]}


WINOGROUND = ("text_score", "image_score", "group_score")
"""Scores of two pictures and two captions, in the order of `winoground_outcomes`."""


def choice_scores(examples: Sequence[Example], earned: Tensor, resamples: int, seed: int) -> dict[str, Score]:
    """Share of pictures that lie nearer to their true caption than to the false one; a tie counts 1/2, chance is 0.5.

    acc (of all examples); acc_<file> where there are several (SugarCrepe has a file for each kind); macro_acc, the mean of the
    accuracies of all kinds (ARO's macro-accuracy over relations), where there are several; n_pictures. Intervals by bootstrap over
    pictures, because several examples may have the same.

    Args:
        examples: n, of one picture each.
        earned: [n] float64.
        resamples, seed: of the bootstrap.
    """
    numbers = {picture: i for i, picture in enumerate(dict.fromkeys(example.pictures[0] for example in examples))}
    owner = torch.tensor([numbers[example.pictures[0]] for example in examples], device=earned.device)
    files = [example.file for example in examples]
    groups = {"acc": [True] * len(examples)}
    if len(set(files)) > 1:
        groups |= {f"acc_{file}": [one == file for one in files] for file in dict.fromkeys(files)}
    scores: dict[str, Score] = {}
    for name, members in groups.items():
        inside = torch.tensor(members, device=earned.device)
        mean, low, high = share_by_cluster(earned[inside], owner[inside], resamples=resamples, seed=seed)
        around = {f"{name}_ci95_low": low, f"{name}_ci95_high": high, f"{name}_chance": 0.5}
        scores |= {name: mean, **around, f"{name}_n": int(inside.sum())}
    found = _kinds([example.kind for example in examples], {"acc": earned}).columns
    if len(found["kind"]) > 1:
        places = {kind: i for i, kind in enumerate(found["kind"])}
        group = torch.tensor([places[example.kind] for example in examples], device=earned.device)
        drawn = resampled_group_means(earned, group, owner, resamples=resamples, seed=seed)
        macro = sum(float(value or 0) for value in found["value"]) / len(places)
        low, high = class_mean_interval(macro, drawn, torch.bincount(group).tolist())
        scores |= {"macro_acc": macro, "macro_acc_ci95_low": low, "macro_acc_ci95_high": high, "macro_acc_chance": 0.5}
    return scores | {"n_pictures": len(numbers), "bootstrap_seed": seed}


def winoground_outcomes(cosines: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Text, image and group score of each example (Thrush et al. 2022, arXiv:2204.03162), and whether a tie decides.

    Let s(i, c) be the cosine of picture i and caption c. Text: both pictures lie nearer to their caption, s(0, 0) > s(0, 1) and
    s(1, 1) > s(1, 0). Image: both captions lie nearer to their picture, s(0, 0) > s(1, 0) and s(1, 1) > s(0, 1). Group: both hold.
    Equal scores count as their mean over all orders, so that a collapsed model scores chance: 1/4, 1/4 and 1/6.

    Args:
        cosines: [n, 2 pictures, 2 captions].

    Returns:
        name -> [n] float64, and mask [n] bool.
    """
    right, wrong = cosines.diagonal(dim1=1, dim2=2), cosines.flip(2).diagonal(dim1=1, dim2=2)  # wrong: (0, 1), (1, 0)

    def above(a: Tensor, b: Tensor) -> Tensor:
        return (a > b).double() + 0.5 * (a == b).double()

    text = above(right, wrong).prod(1)
    image = above(right, wrong.flip(1)).prod(1)
    lowest, highest = right.amin(1), wrong.amax(1)
    # Where the lowest right score equals the highest wrong one: r right and w wrong ones lie there, and are in order in
    # r! w! of (r + w)! orders, 1/2, 1/3, 1/3 or 1/6.
    level = (right == lowest[:, None]).sum(1) * (wrong == highest[:, None]).sum(1)
    shares = torch.tensor([0.0, 1 / 2, 1 / 3, 0.0, 1 / 6], dtype=torch.float64, device=cosines.device)
    group = torch.where(lowest == highest, shares[level], (lowest > highest).double())
    outcomes = dict(zip(WINOGROUND, (text, image, group), strict=True))
    tied = (right[:, :, None] == wrong[:, None]).flatten(1).any(1)
    return outcomes, tied


def winoground_scores(outcomes: Mapping[str, Tensor]) -> dict[str, Score]:
    """Means of `winoground_outcomes` with Wilson intervals and chance."""
    scores: dict[str, Score] = {}
    for name, chance in zip(WINOGROUND, (1 / 4, 1 / 4, 1 / 6), strict=True):
        earned = outcomes[name]
        low, high = wilson(round(float(earned.sum())), len(earned))
        scores |= {name: float(earned.mean()), f"{name}_ci95_low": low, f"{name}_ci95_high": high}
        scores[f"{name}_chance"] = chance
    return scores


def _kinds(kinds: Sequence[str], outcomes: Mapping[str, Tensor]) -> Table:
    """Every outcome by kind, with n and a Wilson interval."""
    rows = []
    for name, earned in outcomes.items():
        values = earned.tolist()
        for kind in dict.fromkeys(kinds):
            own = [value for value, one in zip(values, kinds, strict=True) if one == kind]
            rows.append((name, kind, len(own), sum(own) / len(own), *wilson(round(sum(own)), len(own))))
    columns = ("outcome", "kind", "n", "value", "ci95_low", "ci95_high")
    return Table({column: [row[i] for row in rows] for i, column in enumerate(columns)})


def _cropped(path: Path, box: Box) -> Any:
    """The part of a picture in a box, as far as it lies within.

    Raises:
        DecodeError: the file does not decode, or the box lies outside. OSError: it cannot be read.
    """
    from PIL import Image

    left, top, width, height = box
    with Image.open(path) as whole:
        right, bottom = min(left + width, whole.width), min(top + height, whole.height)
        left, top = max(0, left), max(0, top)
        if right <= left or bottom <= top:
            raise DecodeError("empty", f"its box {list(box)} lies outside of its {whole.width} x {whole.height} pixels")
        return whole.crop((left, top, right, bottom))
