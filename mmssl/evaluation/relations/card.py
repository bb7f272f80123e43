"""The relation card: all tests of how modalities relate that fit a model and its shards, as one table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, Literal

from pydantic import Field, field_validator

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score, Table
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation.class_names import stored_class_names
from mmssl.evaluation.collect import Collected, KeptShards
from mmssl.evaluation.common import broadcast_scores, inference, metric_context, require_modalities
from mmssl.evaluation.prompts import PromptedConfig
from mmssl.evaluation.relations.base import NoRelation, RelationEvaluator
from mmssl.evaluation.relations.compositionality import CompositionalityConfig
from mmssl.evaluation.relations.modality_confusion import ModalityConfusion, ModalityConfusionConfig, require_different
from mmssl.evaluation.relations.modality_gap import gap_scores
from mmssl.evaluation.relations.offset import OffsetConfig
from mmssl.evaluation.relations.sides import REMEDIES, SidesConfig
from mmssl.evaluation.relations.target_modality import target_headlines, target_scores

log = logging.getLogger(__name__)

ENDINGS = {"value": "", "ci95_low": "_ci95_low", "ci95_high": "_ci95_high", "chance": "_chance", "n": "_n"}
"""Column of the card -> what its scores are called behind the metric."""
MOST = 4
"""Modalities whose sets are compared in modality_confusion, the first ones."""


class RelationsConfig(PromptedConfig):
    """Settings of the relation card: all evaluators of relations that fit the model and the shards, as one table.

    These are target_modality, modality_gap, modality_confusion, sides, offset and compositionality, with their usual settings.

    Attributes:
        modalities: those to relate; None: all of the model's shared space that the shards have.
        labels: modality of class numbers for modality_confusion, measured where the shards have labels, and class names for
            prompts or `train_shards`.
        train_shards, max_train_samples: of modality_confusion.
        seconds: length of the windows of offset, as in training; None: it is not measured.
        resamples: number of bootstrap draws (over samples) for the intervals.
        seed: seed of the bootstrap, and of false captions.
    """

    kind: Literal["relations"] = "relations"
    modalities: tuple[str, ...] | None = None
    labels: str = "label"
    train_shards: tuple[str, ...] | None = None
    max_train_samples: int | None = Field(default=None, ge=2)
    seconds: float | None = Field(default=None, gt=0)
    resamples: int = Field(default=2000, ge=100)
    seed: int = 0

    @field_validator("modalities")
    @classmethod
    def _different(cls, modalities: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if modalities is not None and len(modalities) < 2:
            raise ValueError(f"modalities: got {list(modalities)}, wanted two or more to relate")
        return None if modalities is None else require_different(modalities)

    def build(self, modalities: Mapping[str, Modality]) -> RelationCard:
        require_modalities(modalities, self.modalities or ())
        return RelationCard(self, modalities)


@dataclass(frozen=True)
class CardPart:
    """One measurement of the card.

    Attributes:
        kind: of its evaluator. modalities: that it relates.
        prefix: of its scores on the card.
        scores: all of its scores; None: no sample has the relation.
        metrics: names of those that stand on the card.
    """

    kind: str
    modalities: Sequence[str]
    prefix: str
    scores: Mapping[str, Score] | None
    metrics: Sequence[str]

    def rows(self) -> Iterator[dict[str, Score]]:
        """Rows of the card by column; without scores one that has no value."""
        scores = self.scores or {}
        for metric in self.metrics if self.scores else self.metrics[:1]:
            around = metric_context(scores, metric)
            yield {
                "metric": f"{self.prefix}{metric}",
                "relation": self.kind,
                "modalities": "+".join(self.modalities),
                "value": scores.get(metric),
                "ci95_low": around["low"],
                "ci95_high": around["high"],
                "chance": around["chance"],
                "n": scores.get(f"{metric}_n", scores.get("n", 0)),
                "n_excluded": scores.get("n_excluded"),
            }


class RelationCard(Evaluator):
    """Everything about how the modalities of a model relate.

    Scores: the main ones of each evaluator that fits, with its kind and modalities before them where they lack these, e.g.
    sides_video_audio_acc; each with _ci95_low, _ci95_high, _chance and _n where its evaluator has them; n (samples with all
    modalities), n_excluded, n_skipped. Table "card": a row each, and one without a value for a relation that no sample has.
    """

    def __init__(self, config: RelationsConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self.modalities = modalities
        self.names: tuple[str, ...] = ()
        self._shards: KeptShards | None = None
        self._confusion: ModalityConfusion | None = None
        self._tests: list[RelationEvaluator] = []

    def facts(self) -> dict[str, Any]:
        return super().facts() | (self._confusion.facts() if self._confusion is not None else {})

    def open(self) -> None:
        """Open the shards, and find out which relations fit the modalities that they have."""
        if self._shards is None:
            self._find_parts()
        super().open()
        if self._confusion is not None:
            self._confusion.open()

    def _find_parts(self) -> None:
        config = self.config
        index = ShardIndex.open(config.shards, remote=config.remote())
        there = [
            name for name, one in self.modalities.items() if not one.label and {*one.extensions} & {*index.extensions}
        ]
        index.reader.close()
        self.names = config.modalities or tuple(there)
        if len(self.names) < 2:
            raise DataError(
                f"no sample has two modalities to relate: of {len(index)}, the members are {', '.join(index.extensions)}; "
                "check `shards`, and the `extensions` of the modalities"
            )
        things = [name for name in self.names if not self.modalities[name].language][:MOST]
        labels = self.modalities.get(config.labels)
        labelled = labels is not None and bool({*labels.extensions} & {*index.extensions})
        if len(things) > 1 and labelled and (config.train_shards or self._has_prompts()):
            self._confusion = self._made(ModalityConfusionConfig, modalities=tuple(things))
        self._tests = [*self._fitting(things)]
        names = (*self.names, *((config.labels,) if self._confusion is not None else ()))
        self._shards = KeptShards(config, self.modalities, names, config.shards, config.max_samples)
        parts = [self._confusion] if self._confusion is not None else []
        self.kept = (self._shards, *(one for part in (*parts, *self._tests) for one in part.kept))

    def _fitting(self, things: Sequence[str]) -> Iterator[RelationEvaluator]:
        """The tests of broken relations that fit."""
        of = self.modalities
        for pair in permutations(self.names, 2):
            first, second = (of[name] for name in pair)
            has = second.relations & REMEDIES.keys()
            if has and (first.visual if second.audible else first.visual or first.audible):
                yield self._made(SidesConfig, pair=pair)
            if self.config.seconds is not None and first.moving and second.audible:
                yield self._made(OffsetConfig, pair=pair)
            if second.language and pair[0] in things:
                yield self._made(CompositionalityConfig, pair=pair)

    def _made(self, kind: Any, **settings: Any) -> Any:
        """An evaluator of a kind, with the settings that it shares with the card."""
        shared = kind.model_fields.keys() & RelationsConfig.model_fields.keys() - {"kind", *settings}
        own = {name: getattr(self.config, name) for name in shared}
        return kind(**own, **settings).build(self.modalities)

    def _has_prompts(self) -> bool:
        config = self.config
        named = config.classnames is not None or bool(stored_class_names(config.shards))
        return named and config.prompts in self.modalities

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        self.open()
        names = [name for name in self.names if name in model.heads]
        if self.config.modalities is not None or len(names) < 2:
            names = [*self.names]
        for name in names:
            model.require(name, shared_space=True)
        absent = [name for name in self.names if name not in names]
        if absent:
            log.warning("relations: left out %s, which this model has not in its shared space", ", ".join(absent))
        with inference(model, self.config.precision):
            parts = [*self._of_embeddings(model, names)]
        parts += [self._broken(test, model) for test in self._tests if {*test.config.pair} <= {*names}]
        whole = next(part.scores for part in parts if part.scores is not None)
        rows = [row for part in parts for row in part.rows()]
        self.tables = {"card": Table({column: [row[column] for row in rows] for column in rows[0]})}
        found = [row for row in rows if row["value"] is not None]
        self.headlines = tuple(str(row["metric"]) for row in found)
        card = {
            f"{row['metric']}{ending}": row[column]
            for row in found
            for column, ending in ENDINGS.items()
            if row[column] is not None
        }
        yield from broadcast_scores(card | {name: whole[name] for name in ("n", "n_excluded", "n_skipped")}).items()

    @staticmethod
    def _broken(test: RelationEvaluator, model: EmbeddingModel) -> CardPart:
        kind, pair = test.config.kind, test.config.pair
        prefix = "_".join((kind, *pair, ""))
        try:
            scores = dict(test.evaluate(model))
        except NoRelation as error:
            if error.nearest is not None:
                log.warning("%s of %s: %s", kind, list(pair), error)
            return CardPart(kind, pair, prefix, None, test.headlines)
        there = [name for name in test.headlines if name in scores]
        return CardPart(
            kind, pair, prefix, scores, [m for m in there if f"{m}_ci95_low" in scores or scores[m] is None]
        )

    def _of_embeddings(self, model: EmbeddingModel, names: Sequence[str]) -> Iterator[CardPart]:
        """What is measured on the embeddings of one pass over the samples."""
        data = self._collect(model, names)
        config = self.config
        scores = target_scores(data, names, resamples=config.resamples, seed=config.seed)[0]
        yield CardPart("target_modality", names, "", scores, target_headlines(names))
        for pair in combinations(names, 2):
            scores = gap_scores(data, pair)
            yield CardPart("modality_gap", pair, "_".join((*pair, "")), scores, ("gap", "alignment"))
        confusion = self._confusion
        prompts = () if config.train_shards else (config.prompts,)
        if confusion is not None and {*confusion.config.modalities, *prompts} <= {*model.heads}:
            scores = confusion.scores(data, model)
            yield CardPart("modality_confusion", confusion.config.modalities, "", scores, confusion.headlines)

    def _collect(self, model: EmbeddingModel, names: Sequence[str]) -> Collected:
        assert self._shards is not None
        encode = {name: lambda x, name=name: model.embed(name, x) for name in names}
        labels = {self.config.labels: lambda x: x} if self._confusion is not None else {}
        return self._shards.collect({**encode, **labels}, model.device)
