"""Base of relation tests (time, sides, words): one relation of a sample is broken, and the model must prefer the original.

Retrieval scores do not show whether a model can.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.kernel import Margin
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, EncodedSample, read_sample
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation.collect import KeptIndex
from mmssl.evaluation.common import PairEvaluatorConfig, broadcast_scores, inference, require_usable, warn_of_choices
from mmssl.evaluation.texts import values_again

Pieces = dict[str, Tensor]
"""Name of a variant -> its views [n, ...] in one sample; "anchor" -> the one view [1, ...] of the unchanged modality."""
ANCHOR = "anchor"
KIND = "kind"
"""Name of a piece [n] int64 that is not embedded: which of several relations each row tests."""


@dataclass(frozen=True)
class Embedded:
    """The embedded variants of all samples, from all processes, in the order of the samples.

    Attributes:
        rows: name of a variant -> unit-norm embeddings [n, E], or the kinds [n] of the rows.
        owner: [n] int64, number of the sample of each row.
        keys: number of a sample -> its key.
    """

    rows: Mapping[str, Tensor]
    owner: Tensor
    keys: Mapping[int, str]

    def near(self, *names: str) -> Tensor:
        """Cosines of the anchor to each of the variants, [n, variants]."""
        return torch.stack([(self.rows[ANCHOR] * self.rows[name]).sum(1) for name in names], 1)


class NoRelation(DataError):
    """No sample has the relation that is tested.

    Attributes:
        nearest: the largest margin that was found, of a relation with a threshold.
    """

    def __init__(self, message: str, nearest: Margin | None) -> None:
        super().__init__(f"{message}; at most, {nearest}" if nearest else message)
        self.nearest = nearest


class RelationConfig(PairEvaluatorConfig):
    """Settings of every relation test.

    Attributes:
        pair: the unchanged modality, and the changed one. Samples that lack one of them are excluded.
    """

    kind: str


class RelationEvaluator(Evaluator):
    """Base of relation tests: embeds the original and changed views of each sample, and all-gathers them.

    Args:
        config: settings of the evaluator.
        modalities: by name.
        remedy: for the warning of ties: what makes candidates equal to a model, and what to do.

    Attributes:
        nearest: the largest margin of the samples of this process that lack a relation with a threshold; `pieces` sets it.
    """

    nearest: Margin | None = None

    def __init__(self, config: RelationConfig, modalities: Mapping[str, Modality], remedy: str) -> None:
        self.config = config
        self.modalities = {name: modalities[name] for name in config.pair}
        self.remedy = remedy
        self._index = KeptIndex(config.shards, self.modalities, config.remote())
        self.kept = (self._index,)

    @abstractmethod
    def pieces(self, sample: EncodedSample) -> Pieces | None:
        """Views of a sample, equal numbers of each variant, see `Pieces` and `KIND`; None: the sample lacks the relation.

        Raises:
            BadSample: it cannot be used, or ("missing") a member lacks its modality, e.g. a video without sound.
        """

    @abstractmethod
    def scores(self, embedded: Embedded) -> dict[str, Score]:
        """Scores; "tie_rate" is the share of tied choices. May set `tables`."""

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in config.pair:
            model.require(name, shared_space=True)
        index = self._index.open()
        total = min(len(index), config.max_samples or len(index))
        with inference(model, self.config.precision):
            parts, owners, *counts = self._share(model, index, total)
            excluded, skipped = (sum(column) for column in zip(*distributed.gather_objects(counts), strict=True))
            embedded = gather_named(parts, model.device)
            margins = filter(None, distributed.gather_objects(self.nearest))
            if not embedded:
                raise NoRelation(
                    f"no sample has the relation between {list(config.pair)} that `{config.kind}` tests: of {total}, {excluded} "
                    f"lack a modality or the relation, and {skipped} are damaged; check `shards` and `pair`",
                    max(margins, key=lambda margin: margin.found, default=None),
                )
            owner = distributed.gather_uneven(torch.tensor(owners, dtype=torch.int64, device=model.device))
            keys = {number: index.key(number) for number in owner.tolist()}
            for name, rows in embedded.items():
                if name != KIND:
                    require_usable(rows, owner, keys, f"the embedding of {self._modality(name)!r} ({name})", unit=True)
            found = self.scores(Embedded(embedded, owner, keys))
            scores = broadcast_scores(found | {"n_excluded": excluded, "n_skipped": skipped})
        warn_of_choices(f"{config.kind} of {list(config.pair)}", float(scores["tie_rate"] or 0), self.remedy)
        yield from scores.items()

    def _share(
        self, model: EmbeddingModel, index: ShardIndex, total: int
    ) -> tuple[dict[str, list[Tensor]], list[int], int, int]:
        """This process' embeddings by name, the indices of their samples, and the numbers of excluded and skipped samples."""
        rank, world = distributed.rank(), distributed.world_size()
        excluded, skipped = 0, 0
        parts: dict[str, list[Tensor]] = {}
        waiting: list[Pieces] = []
        owners: list[int] = []
        counts: list[int] = []
        for ordinal in range(rank * total // world, (rank + 1) * total // world):
            try:
                pieces = self.pieces(read_sample(index, ordinal, self.modalities))
            except BadSample as bad:
                if bad.fault.reason == "missing":  # e.g. a video without sound
                    excluded += 1
                    continue
                if self.config.on_error == "raise":
                    raise DataError(f"{bad}\nTo leave such samples out, set `on_error: skip`") from bad
                skipped += 1
                continue
            if pieces is None:
                excluded += 1
                continue
            waiting.append(pieces)
            counts.append(next(len(views) for name, views in pieces.items() if name != ANCHOR))
            owners += [ordinal] * counts[-1]
            if len(waiting) == self.config.batch_size:
                self._embed(model, waiting, parts)
        self._embed(model, waiting, parts)
        if counts:
            repeats = torch.tensor(counts, device=model.device)
            parts[ANCHOR] = [torch.cat(parts[ANCHOR]).repeat_interleave(repeats, 0)]
        return parts, owners, excluded, skipped

    def _embed(self, model: EmbeddingModel, waiting: list[Pieces], parts: dict[str, list[Tensor]]) -> None:
        for name in waiting[0] if waiting else ():
            views = torch.cat([pieces[name] for pieces in waiting])
            pieces = torch.split(views, self.config.batch_size)
            made = [x.to(model.device) if name == KIND else model.embed(self._modality(name), x) for x in pieces]
            parts.setdefault(name, []).extend(made)
        waiting.clear()

    def _modality(self, piece: str) -> str:
        return self.config.pair[0] if piece == ANCHOR else self.config.pair[1]

    def _again(self, owner: Sequence[int]) -> Iterator[Any]:
        """The changed modality of each sample, read again, for tables in files."""
        name = self.config.pair[1]
        return (value for _, value in values_again(self._index.open(), name, self.modalities[name], owner))

    def _views(self, name: str, value: Any) -> Tensor:
        view = self.modalities[name].view("eval")
        made = view(value, {})
        return made if view.ragged else made[None]


def gather_named(parts: Mapping[str, Sequence[Tensor]], device: torch.device) -> dict[str, Tensor]:
    """All-gather parts of rows [n, ...] by name; a process may have none. Empty if no process has any."""
    own = {name: torch.cat([*part]) for name, part in parts.items()}
    known = distributed.gather_objects({name: (tuple(x.shape[1:]), x.dtype) for name, x in own.items()})
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = next((some for some in known if some), {})
    return {
        name: distributed.gather_uneven(own.get(name, torch.empty((0, *shape), dtype=dtype, device=device)))
        for name, (shape, dtype) in shapes.items()
    }
