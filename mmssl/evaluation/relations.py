"""How much a model hears of relations: retrieval when sound and picture are apart in time, and choices between left and right.

A model that was trained on flips of the picture alone cannot tell sides, and one that was trained on sounds cut anywhere cannot
tell moments; scores of retrieval hide both. Here one relation is broken on purpose, and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from mmssl.core import distributed
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.audio import AudioModality
from mmssl.data.decode import BadSample, decode_members, find_members, read_extents, read_sample
from mmssl.data.index import RawSample, ShardIndex
from mmssl.data.modality import Modality
from mmssl.data.negatives import Negative
from mmssl.data.synchronized_operation import Skip, transform
from mmssl.data.text import TextModality
from mmssl.evaluation.common import PairConfig, agreed, inference, require_modalities, require_usable
from mmssl.evaluation.ranking import exact_products, pair_ranks
from mmssl.evaluation.statistics import wilson

Pieces = dict[str, Tensor]
"""Name of what was embedded -> [n, ...] views of one sample."""


class RelationConfig(PairConfig):
    """What both probes have.

    Attributes:
        pair: the modality that stays as it is, and the one that leaves it. Samples that lack one of them are excluded.
    """


class RelationEvaluator(Evaluator):
    """Embeds the pieces of each sample of this process' share, sample by sample, and gives every process those of all."""

    def __init__(self, config: RelationConfig, modalities: Mapping[str, Modality]) -> None:
        self.config = config
        self.modalities = {name: modalities[name] for name in config.pair}

    @abstractmethod
    def pieces(self, raw: RawSample) -> Pieces | None:
        """Views of a sample by name, equally many of each, "anchor" among them; None: the sample has no such relation.

        Raises:
            BadSample: it cannot be used, or ("missing") lacks one of the pair.
        """

    @abstractmethod
    def scores(self, embedded: Mapping[str, Tensor]) -> dict[str, Score]:
        """Scores from unit embeddings [n, E] by name, in the order of the samples."""

    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        config = self.config
        for name in config.pair:
            model.require(name, shared_space=True)
        index = ShardIndex.open(config.shards)
        total = min(len(index), config.max_samples or len(index))
        rank, world = distributed.rank(), distributed.world_size()
        without, skipped = 0, 0
        parts: dict[str, list[Tensor]] = {}
        waiting: list[Pieces] = []
        owners: list[int] = []
        with inference(model):
            for ordinal in range(rank * total // world, (rank + 1) * total // world):
                try:
                    pieces = self.pieces(read_sample(index, ordinal, self.modalities))
                except BadSample as bad:
                    if bad.fault.reason == "missing":  # such as a mute video
                        without += 1
                        continue
                    if config.on_error == "raise":
                        raise DataError(f"{bad}\nLeave such samples out with `on_error: skip`") from bad
                    skipped += 1
                    continue
                if pieces is None:
                    without += 1
                    continue
                waiting.append(pieces)
                owners += [ordinal] * len(pieces["anchor"])
                if len(waiting) == config.batch_size:
                    self._embed(model, waiting, parts)
            self._embed(model, waiting, parts)
            embedded = self._everywhere(parts, model.device)
            owner = distributed.gather_uneven(torch.tensor(owners, dtype=torch.int64, device=model.device))
            keys = {number: index.key(number) for number in owner.tolist()}
            for name, rows in embedded.items():
                require_usable(rows, owner, keys, f"the embedding of {self._modality(name)!r} ({name})", unit=True)
            scores = self.scores(embedded)
        counts = distributed.gather_objects((without, skipped))
        scores["n_excluded"] = sum(count[0] for count in counts)
        scores["n_skipped"] = sum(count[1] for count in counts)
        yield from agreed(scores).items()

    def _embed(self, model: EmbeddingModel, waiting: list[Pieces], parts: dict[str, list[Tensor]]) -> None:
        for name in waiting[0] if waiting else ():
            views = torch.cat([pieces[name] for pieces in waiting]).to(model.device)
            made = [model.embed(self._modality(name), part) for part in torch.split(views, self.config.batch_size)]
            parts.setdefault(name, []).extend(made)
        waiting.clear()

    def _modality(self, piece: str) -> str:
        return self.config.pair[0] if piece == "anchor" else self.config.pair[1]

    def _everywhere(self, parts: dict[str, list[Tensor]], device: torch.device) -> dict[str, Tensor]:
        own = {name: torch.cat(part) for name, part in parts.items()}
        known = distributed.gather_objects({name: x.shape[1] for name, x in own.items()})
        widths = next((widths for widths in known if widths), None)
        if widths is None:
            raise DataError(
                f"no sample has the relation that is probed between {list(self.config.pair)}: check `shards`"
            )
        return {
            name: distributed.gather_uneven(own.get(name, torch.empty(0, width, device=device)))
            for name, width in widths.items()
        }

    def _views(self, name: str, value: Any) -> Tensor:
        view = self.modalities[name].view("eval")
        made = view(value, {})
        return made if view.ragged else made[None]


class OffsetConfig(RelationConfig):
    """Configures retrieval against the offset between two modalities with a time axis.

    Attributes:
        pair: the modality that stays, and the one that is taken from elsewhere in time, as in [video, audio].
        seconds: length of the window of each; as long as the model was trained for.
        offsets: seconds by which the second window begins later; 0 is in sync. Samples that are shorter than `seconds` and the
            largest offset together are excluded, so that all points of the curve are of the same samples.
    """

    kind: Literal["offset"] = "offset"
    seconds: float = Field(gt=0)
    offsets: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)

    @field_validator("offsets")
    @classmethod
    def _rising(cls, offsets: tuple[float, ...]) -> tuple[float, ...]:
        if len(offsets) < 2 or offsets[0] != 0 or list(offsets) != sorted(set(offsets)):
            raise ValueError(f"got the offsets {list(offsets)}, wanted 0 and then larger ones, rising")
        return offsets

    def build(self, modalities: Mapping[str, Modality]) -> Offset:
        require_modalities(modalities, self.pair)
        return Offset(self, modalities)


class Offset(RelationEvaluator):
    """R@1 from the first modality to the second at each offset, among the same samples, and the choice of the true moment.

    Scores: R@1_at_<offset> (R@1 when every candidate is late by so much); in_sync_acc: share of samples whose own candidate without
    offset is nearer than each of its own candidates with one (ties count as half, chance is in_sync_chance); n.
    """

    headlines = ("R@1_at_0", "in_sync_acc")

    def __init__(self, config: OffsetConfig, modalities: Mapping[str, Modality]) -> None:
        super().__init__(config, modalities)
        self.seconds, self.offsets = config.seconds, config.offsets

    def pieces(self, raw: RawSample) -> Pieces | None:
        members = find_members(raw, self.modalities)
        extents = read_extents(raw, members, self.modalities)
        anchor, moved = self.config.pair
        for name in self.config.pair:
            if name not in extents:
                raise RecipeError(f"offset: modality {name!r} has no time axis, and both of the pair need one")
        first = max(extent.start for extent in extents.values())
        room = min(extent.seconds for extent in extents.values()) - first - self.seconds - self.offsets[-1]
        if room < -1e-3:  # containers round their lengths to milliseconds
            return None
        start = first + max(0.0, room) / 2

        def window(name: str, offset: float) -> Tensor:
            windows = {name: (start + offset, self.seconds)}
            return self._views(name, decode_members(raw, {name: members[name]}, self.modalities, windows=windows)[name])

        return {"anchor": window(anchor, 0.0)} | {label(offset): window(moved, offset) for offset in self.offsets}

    def scores(self, embedded: Mapping[str, Tensor]) -> dict[str, Score]:
        anchor = embedded["anchor"]
        n = len(anchor)
        own = torch.arange(n, device=anchor.device)
        scores: dict[str, Score] = {"n": n}
        near = []
        for offset in self.offsets:
            rows = embedded[label(offset)]
            ranks, _ = pair_ranks(anchor, own, rows, own, depth=1)
            scores[f"R@1_at_{offset:g}"] = int((ranks.ranks[:, 0] == 1).sum()) / n
            near.append((anchor * rows).sum(1))
        others = torch.stack(near[1:]).amax(0)
        right = (near[0] > others).double() + 0.5 * (near[0] == others)
        return scores | {
            "R@1_chance": 1 / n,
            "in_sync_acc": float(right.mean()),
            "in_sync_chance": 1 / len(self.offsets),
        }


class SidesConfig(RelationConfig):
    """Configures the choice between a sample and its mirror image.

    Attributes:
        pair: the modality that stays, and the one whose sides are exchanged: the channels of stereo sound, or left and right in
            captions; as in [image, audio] or [video, text]. Samples without a side (sound in the middle, no such words) are
            excluded.
    """

    kind: Literal["sides"] = "sides"

    def build(self, modalities: Mapping[str, Modality]) -> Sides:
        require_modalities(modalities, self.pair)
        changed = modalities[self.pair[1]]
        if not isinstance(changed, AudioModality | TextModality):
            raise RecipeError(
                f"sides: got the pair {list(self.pair)}, wanted a sound or a caption as the second: its sides are exchanged"
            )
        return Sides(self, modalities)


class Sides(RelationEvaluator):
    """Share of samples whose first modality is nearer to the second than to the second with its sides exchanged.

    Scores: acc (ties count as half; chance is 0.5), its Wilson interval, tie_rate, n (captions, where a sample has several).
    """

    headlines = ("acc",)

    def __init__(self, config: SidesConfig, modalities: Mapping[str, Modality]) -> None:
        super().__init__(config, modalities)
        relation: Literal["channels", "caption"] = (
            "channels" if isinstance(modalities[config.pair[1]], AudioModality) else "caption"
        )
        self.negative = Negative(probability=1.0, relations=(relation,))

    def pieces(self, raw: RawSample) -> Pieces | None:
        values = decode_members(raw, find_members(raw, self.modalities), self.modalities)
        try:
            entry = self.negative.draw(values, self.modalities, np.random.default_rng(0))
        except Skip:
            return None
        mirrored = transform({"op": "negative", "applied": True, **entry}, values, self.modalities)
        anchor, changed = self.config.pair
        true, false = (self._views(changed, some[changed]) for some in (values, mirrored))
        return {
            "anchor": self._views(anchor, values[anchor])[:1].repeat_interleave(len(true), 0),
            "true": true,
            "false": false,
        }

    def scores(self, embedded: Mapping[str, Tensor]) -> dict[str, Score]:
        with exact_products():
            true, false = ((embedded["anchor"] * embedded[name]).sum(1) for name in ("true", "false"))
        n, wins, ties = len(true), int((true > false).sum()), int((true == false).sum())
        low, high = wilson(round(wins + ties / 2), n)
        return {
            "acc": (wins + ties / 2) / n,
            "acc_ci95_low": low,
            "acc_ci95_high": high,
            "chance": 0.5,
            "tie_rate": ties / n,
            "n": n,
        }


def label(offset: float) -> str:
    """Name of the candidates at an offset."""
    return f"{offset:g}"
