"""What all evaluators share: their config, and embeddings of a whole data set on every process."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from mmssl.core import distributed
from mmssl.core.batch import Batch
from mmssl.core.config import Config, Entries, PositiveDuration
from mmssl.core.errors import DataError, NumericError, RecipeError, did_you_mean
from mmssl.core.evaluator import Evaluator, Score
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import EvalStream
from mmssl.evaluation.ranking import exact_products

log = logging.getLogger(__name__)

TIE_WARNING = 0.01
"""Share of tied queries above which scores depend on the tie rule, and a warning says so."""


class EvaluatorConfig(Config):
    """What every evaluator's config has.

    Attributes:
        shards: shards to measure on: paths, braces or globs.
        every: how often it runs during training; None: at the end only.
        batch_size: samples of one process encoded at a time; changes speed and memory, not scores.
        workers: processes that decode; 0: none but this one.
        max_samples: measure on the first so many samples only; None: on all.
        on_error: what a sample that cannot be decoded does: "raise" ends the evaluation; "skip" leaves it out and
            counts it in n_skipped.
    """

    shards: tuple[str, ...] = Field(min_length=1)
    every: PositiveDuration | None = None
    batch_size: int = Field(default=256, ge=1)
    workers: int = Field(default=0, ge=0)
    max_samples: int | None = Field(default=None, ge=1)
    on_error: Literal["raise", "skip"] = "raise"

    @abstractmethod
    def build(self, modalities: Mapping[str, Modality]) -> Evaluator:
        """The evaluator for the modalities of a recipe.

        Raises:
            RecipeError: it names a modality that the recipe lacks, or a file that cannot be used.
        """


class PairConfig(EvaluatorConfig, ABC):
    """What configs of evaluators that compare two modalities have.

    Attributes:
        pair: two different modalities.
    """

    pair: Annotated[tuple[str, str], Entries(("modality", "other modality"))]

    @field_validator("pair")
    @classmethod
    def _two(cls, pair: tuple[str, str]) -> tuple[str, str]:
        if pair[0] == pair[1]:
            raise ValueError(
                f"got the pair {list(pair)}, wanted two different modalities: everything would find itself"
            )
        return pair


@dataclass(frozen=True)
class Items:
    """One modality of a whole data set: rows of all processes, in the order of the samples.

    Attributes:
        rows: [n, ...], one row an item; a sample may have several items (captions), or none.
        owner: [n] int64, ascending: number of the sample that the item belongs to.
        digest: [n] int64, hash of the item's view before it was encoded: equal items have equal digests.
    """

    rows: Tensor
    owner: Tensor
    digest: Tensor


@dataclass(frozen=True)
class Collected:
    """A data set as an evaluator sees it.

    Attributes:
        items: modality -> its items.
        keys: number of a sample -> its key.
        skipped: samples that could not be decoded and are not among the keys.
    """

    items: Mapping[str, Items]
    keys: Mapping[int, str]
    skipped: int = 0

    def __getitem__(self, modality: str) -> Items:
        return self.items[modality]


Encode = Callable[[Tensor], Tensor]
"""Views [n, ...] on the CPU -> rows [n, ...] on any device."""


def collect_shards(
    config: EvaluatorConfig,
    modalities: Mapping[str, Modality],
    encode: Mapping[str, Encode],
    device: torch.device,
    *,
    shards: Sequence[str],
    limit: int | None,
) -> Collected:
    """`collect` over the eval views of the first `limit` samples of shards. A sample may lack any of the modalities.

    Args:
        config: batch size, workers, and what becomes of damaged samples.
        modalities: by name.
        encode: modality -> function.
        device: where rows are made and kept.
        shards: paths, braces or globs.
        limit: None: all samples.

    Raises:
        DataError: the shards cannot be used.
    """
    index = ShardIndex.open(shards)
    stream = EvalStream(
        index,
        modalities,
        {name: {"eval": 1} for name in encode},
        config.batch_size,
        config.workers,
        on_error=config.on_error,
        optional=tuple(encode),
    )
    try:
        batches = first_samples(stream, limit or len(index))
        data = collect(batches, encode, device, config.batch_size)
    finally:
        stream.close()
    skipped = sum(distributed.gather_objects(stream.faults.total()))
    return replace(data, skipped=skipped)


@torch.no_grad()
def collect(batches: Iterable[Batch], encode: Mapping[str, Encode], device: torch.device, chunk: int) -> Collected:
    """Encode one pass over this process' share, and give every process the rows of all.

    Items of ragged views are unpacked: a sample with three captions gives three rows. A sample that lacks a modality gives none.

    Args:
        batches: views "eval0" of each modality in `encode`.
        encode: modality -> function.
        device: where rows are made and kept.
        chunk: most items encoded at a time.

    Raises:
        DataError: no process got any sample, or none with one of the modalities.
    """
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {modality: [] for modality in encode}
    keys: dict[int, str] = {}
    for batch in batches:
        keys.update(zip(batch.index.tolist(), batch.keys, strict=True))
        for modality, function in encode.items():
            views, owner = unpack(batch, modality)
            if len(owner):
                rows = torch.cat([function(part).to(device) for part in torch.split(views, chunk)])
                parts[modality].append((rows, owner.to(device), digests(views).to(device)))
    everyone = {number: key for share in distributed.gather_objects(keys) for number, key in share.items()}
    if not everyone:
        raise DataError("got no sample to measure on, wanted at least one: check the evaluator's `shards`")
    joined = {modality: _joined(modality, part, device, len(everyone)) for modality, part in parts.items()}
    return Collected(joined, everyone)


def unpack(batch: Batch, modality: str) -> tuple[Tensor, Tensor]:
    """Items of a modality's eval view [n, ...], and their owners [n]: absent samples and padding left out."""
    x, owner = batch[modality]["eval0"], batch.index
    present = batch.present.get(modality, torch.ones(len(batch), dtype=torch.bool))
    if modality not in batch.lengths:
        return x[present], owner[present]
    real = (torch.arange(x.shape[1]) < batch.lengths[modality][:, None]) & present[:, None]
    return x[real], owner[:, None].expand_as(real)[real]


def digests(views: Tensor) -> Tensor:
    """[n] int64, a hash of each row's bytes."""
    rows = views.reshape(len(views), -1).contiguous().cpu().numpy()
    found = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.from_numpy(np.frombuffer(b"".join(found), np.int64).copy())


def _joined(modality: str, parts: list[tuple[Tensor, Tensor, Tensor]], device: torch.device, samples: int) -> Items:
    """Parts of all processes. One whose share had no item learns the shape of a row from another."""
    own = [torch.cat(column) for column in zip(*parts, strict=True)] if parts else None
    shapes = distributed.gather_objects([(tuple(x.shape[1:]), x.dtype) for x in own] if own else None)
    shape = next((shape for shape in shapes if shape), None)
    if shape is None:
        raise DataError(
            f"no sample has {modality!r}, of {samples}: check the evaluator's `shards`, and the modality's `extensions`"
        )
    if own is None:
        own = [torch.empty((0, *rest), dtype=dtype, device=device) for rest, dtype in shape]
    return Items(*(distributed.gather_uneven(x) for x in own))


def paired(data: Collected, a: str, b: str) -> tuple[Tensor, Tensor]:
    """Which items of each of two modalities belong to a sample that has both: [n of a] bool, [n of b] bool.

    Raises:
        DataError: no sample has; says how many have one.
    """
    own, other = data[a].owner, data[b].owner
    has, also = torch.isin(own, other), torch.isin(other, own)
    if not has.any():
        samples, first, second = len(data.keys), len(torch.unique(own)), len(torch.unique(other))
        raise DataError(
            f"no sample has both {a!r} and {b!r}: of {samples}, {first} have {a!r} and {second} have {b!r}; "
            "check the evaluator's shards"
        )
    return has, also


def require_usable(rows: Tensor, owner: Tensor, keys: Mapping[int, str], what: str, *, unit: bool) -> None:
    """Refuse rows that are not finite, and with `unit` rows without a direction, by the key of their sample.

    Raises:
        NumericError: names the first such sample, and says how many there are.
    """
    bad = ~torch.isfinite(rows).all(1)
    problem = "not finite"
    if unit and not bad.any():
        bad, problem = rows.norm(dim=1) == 0, "zero: it has no direction"
    if bad.any():
        first = int(owner[bad.to(owner.device)][0])
        raise NumericError(
            f"{what} of key {keys[first]!r} (sample {first}) is {problem}; such are {int(bad.sum())} of {len(rows)}, and no score "
            "can be given. One: check that sample. Many: the weights are damaged, go back to an earlier checkpoint"
        )


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradient, float32 throughout; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), exact_products():
            yield
    finally:
        for module, training in modes:
            module.training = training


def first_samples(batches: Iterable[Batch], limit: int) -> Iterator[Batch]:
    """The batches up to sample number `limit`; indices ascend, so the rest is never decoded."""
    for batch in batches:
        wanted = int((batch.index < limit).sum())
        if wanted:
            yield batch.rows(0, wanted)
        if wanted < len(batch):
            return


def require_modalities(modalities: Mapping[str, Modality], names: Iterable[str]) -> None:
    """Refuse names that the recipe does not list.

    Raises:
        RecipeError: says which, and what there is.
    """
    for name in names:
        if name not in modalities:
            raise RecipeError(
                f"an evaluator names the modality {name!r}{did_you_mean(name, modalities)}: the recipe has {sorted(modalities)}"
            )


def agreed(scores: Mapping[str, Score]) -> dict[str, Score]:
    """The main process' scores, on every process: rounding may differ between devices."""
    return dict(distributed.gather_objects(dict(scores))[0])


def warn_of_ties(name: str, share: float) -> None:
    """Say that scores hang on the tie rule: the model has collapsed, or the data repeat themselves."""
    if share > TIE_WARNING and distributed.is_main():
        log.warning(
            "%s: %.1f %% of the queries tie with a wrong candidate; ties go to the one that stands earlier in the data, so that "
            "a collapsed model scores chance. Many ties mean a collapsed model, or samples that repeat each other.",
            name,
            100 * share,
        )
