"""What probes of relations share: one relation of a sample is broken on purpose, and nothing else, and the model is to tell.

Scores of retrieval hide whether a model can.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, EncodedSample, read
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation.collect import KeptIndex
from mmssl.evaluation.common import PairEvaluatorConfig, agreed, inference, require_usable

log = logging.getLogger(__name__)

MOST = 0.5
"""Share of choices that tie above which a score says little of the model, and a warning says so."""

Pieces = dict[str, Tensor]
"""Name of what was embedded -> [n, ...] views of one sample."""


class RelationConfig(PairEvaluatorConfig):
    """What both probes have.

    Attributes:
        pair: the modality that stays as it is, and the one that leaves it. Samples that lack one of them are excluded.
    """

    kind: str


class RelationEvaluator(Evaluator):
    """Embeds the pieces of each sample of this process' share, sample by sample, and gives every process those of all.

    Args:
        config: of the probe.
        modalities: by name.
        remedy: what makes candidates the same to a model, and what to do about it: for a warning.
    """

    def __init__(self, config: RelationConfig, modalities: Mapping[str, Modality], remedy: str) -> None:
        self.config = config
        self.modalities = {name: modalities[name] for name in config.pair}
        self.remedy = remedy
        self._index = KeptIndex(config.shards)

    @abstractmethod
    def pieces(self, sample: EncodedSample) -> Pieces | None:
        """Views of a sample by name, equally many of each, "anchor" among them; None: the sample has no such relation.

        Raises:
            BadSample: it cannot be used, or ("missing") a member has none of its modality in it, as a mute video.
        """

    @abstractmethod
    def scores(self, embedded: Mapping[str, Tensor]) -> dict[str, Score]:
        """Scores from unit embeddings [n, E] by name, in the order of the samples; "tie_rate" is the share of choices that tie."""

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in config.pair:
            model.require(name, shared_space=True)
        index = self._index.open()
        total = min(len(index), config.max_samples or len(index))
        with inference(model):
            parts, owners, *counts = self._share(model, index, total)
            excluded, skipped = (sum(column) for column in zip(*distributed.gather_objects(counts), strict=True))
            embedded = self._everywhere(parts, model.device)
            if not embedded:
                raise DataError(
                    f"no sample has the relation that is probed between {list(config.pair)}: of {total}, {excluded} lack one of "
                    f"the two or the relation, and {skipped} are damaged; check `shards`, and what `{config.kind}` asks of a sample"
                )
            owner = distributed.gather_uneven(torch.tensor(owners, dtype=torch.int64, device=model.device))
            keys = {number: index.key(number) for number in owner.tolist()}
            for name, rows in embedded.items():
                require_usable(rows, owner, keys, f"the embedding of {self._modality(name)!r} ({name})", unit=True)
            scores = agreed(self.scores(embedded) | {"n_excluded": excluded, "n_skipped": skipped})
        self._warn(float(scores["tie_rate"] or 0))
        yield from scores.items()

    def close(self) -> None:
        """See the base."""
        self._index.close()

    def _share(
        self, model: EmbeddingModel, index: ShardIndex, total: int
    ) -> tuple[dict[str, list[Tensor]], list[int], int, int]:
        """This process' embeddings by name, the numbers of their samples, and how many were excluded and skipped."""
        rank, world = distributed.rank(), distributed.world_size()
        excluded, skipped = 0, 0
        parts: dict[str, list[Tensor]] = {}
        waiting: list[Pieces] = []
        owners: list[int] = []
        for ordinal in range(rank * total // world, (rank + 1) * total // world):
            try:
                pieces = self.pieces(read(index, ordinal, self.modalities))
            except BadSample as bad:
                if bad.fault.reason == "missing":  # such as a mute video
                    excluded += 1
                    continue
                if self.config.on_error == "raise":
                    raise DataError(f"{bad}\nLeave such samples out with `on_error: skip`") from bad
                skipped += 1
                continue
            if pieces is None:
                excluded += 1
                continue
            waiting.append(pieces)
            owners += [ordinal] * len(pieces["anchor"])
            if len(waiting) == self.config.batch_size:
                self._embed(model, waiting, parts)
        self._embed(model, waiting, parts)
        return parts, owners, excluded, skipped

    def _warn(self, ties: float) -> None:
        if ties > MOST and distributed.is_main():
            log.warning(
                "%s of %s: %.1f %% of the choices are ties. They count as chance, so the score says little but that the model "
                "cannot tell these candidates: %s",
                self.config.kind,
                list(self.config.pair),
                100 * ties,
                self.remedy,
            )

    def _embed(self, model: EmbeddingModel, waiting: list[Pieces], parts: dict[str, list[Tensor]]) -> None:
        for name in waiting[0] if waiting else ():
            views = torch.cat([pieces[name] for pieces in waiting])
            made = [model.embed(self._modality(name), part) for part in torch.split(views, self.config.batch_size)]
            parts.setdefault(name, []).extend(made)
        waiting.clear()

    def _modality(self, piece: str) -> str:
        return self.config.pair[0] if piece == "anchor" else self.config.pair[1]

    def _everywhere(self, parts: dict[str, list[Tensor]], device: torch.device) -> dict[str, Tensor]:
        """Rows of all processes by name; empty if no process has any."""
        own = {name: torch.cat(part) for name, part in parts.items()}
        known = distributed.gather_objects({name: x.shape[1] for name, x in own.items()})
        widths: dict[str, int] = next((widths for widths in known if widths), {})
        return {
            name: distributed.gather_uneven(own.get(name, torch.empty(0, width, device=device)))
            for name, width in widths.items()
        }

    def _views(self, name: str, value: Any) -> Tensor:
        view = self.modalities[name].view("eval")
        made = view(value, {})
        return made if view.ragged else made[None]
