"""Training samples that lie near to test samples by the features of a model: copies that no hash finds (cut, mirrored)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.remote import Remote
from mmssl.data.stream.batches import EvalStream
from mmssl.evaluation.collect import encode_in_parts, unpack_items
from mmssl.evaluation.common import inference, require_usable
from mmssl.evaluation.tiles import exact_products


@dataclass(frozen=True)
class Nearby:
    """The nearest training sample of each of T test items of one modality.

    Attributes:
        test, train: key and shard of the test sample, and of the training sample.
        cosines: [T] float32, of their features.
        within: [T] float32, cosine to the nearest item of another test sample: what two different samples have; -1 without one.
    """

    test: Sequence[str]
    train: Sequence[str]
    cosines: Tensor
    within: Tensor

    def quantiles(self, share: float) -> tuple[float, float]:
        """What a share of the items lies below: to training samples, and within the test set."""
        return float(self.cosines.quantile(share)), float(self.within.quantile(share))


def near_samples(
    model: EmbeddingModel,
    modalities: Mapping[str, Modality],
    train: Sequence[str],
    test: Sequence[str],
    *,
    batch_size: int = 256,
    remote: Remote | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Nearby]:
    """Find the nearest training sample of each test sample, by each modality that the model and both sets have, without texts.

    Texts are left out, because captions of different samples are alike. Features are those before any head, of which a head that
    compares meanings keeps less. Damaged samples are left out. Memory is that of the features of the test samples.

    Args:
        model, modalities: encoders, and what reads their inputs.
        train, test: shards: paths, braces or globs; or URLs.
        batch_size: samples encoded at a time.
        remote: client for URLs; None: one with the usual cache.
        progress: called with (samples done, samples in all).

    Raises:
        RecipeError: the model has no modality but texts. DataError: the shards have none of them, or cannot be read.
    """
    names = [name for name in model.encoders if not modalities[name].language]
    if not names:
        raise RecipeError(f"this model has {', '.join(model.encoders)}, wanted a modality besides texts to compare by")
    sets = [ShardIndex.open([*shards], remote=remote) for shards in (test, train)]
    there = [n for n in names if all(set(modalities[n].extensions) & set(one.extensions) for one in sets)]
    if not there:
        raise DataError(
            f"no modality of {', '.join(names)} is in both: the test shards have {', '.join(sets[0].extensions)}, "
            f"the training shards {', '.join(sets[1].extensions)}"
        )
    total = sum(map(len, sets))
    with inference(model):
        looked_for: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in there}
        for name, rows, owner, done in _features(model, modalities, there, sets[0], batch_size):
            looked_for[name].append((rows, owner))
            _tell(progress, done, total)
        banks = {
            name: [torch.cat(column) for column in zip(*parts, strict=True)]
            for name, parts in looked_for.items()
            if parts
        }
        best = {name: rows.new_full((len(rows),), -2) for name, (rows, _) in banks.items()}
        found = {
            name: torch.zeros(len(rows), dtype=torch.int64, device=rows.device) for name, (rows, _) in banks.items()
        }
        for name, rows, owner, done in _features(model, modalities, list(banks), sets[1], batch_size):
            with exact_products():
                cosines, places = (banks[name][0] @ rows.T).max(1)
            nearer = cosines > best[name]
            best[name] = torch.where(nearer, cosines, best[name])
            found[name] = torch.where(nearer, owner.to(rows.device)[places], found[name])
            _tell(progress, len(sets[0]) + done, total)
    return {
        name: Nearby(
            [_name(sets[0], number) for number in owner.tolist()],
            [_name(sets[1], number) for number in found[name].tolist()],
            best[name].cpu(),
            _within(rows, owner),
        )
        for name, (rows, owner) in banks.items()
        if bool((best[name] > -2).all())
    }


def _features(
    model: EmbeddingModel,
    modalities: Mapping[str, Modality],
    names: Sequence[str],
    index: ShardIndex,
    batch_size: int,
) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """(Modality, unit-norm features [n, D], numbers of their samples [n], samples done) of each batch."""
    needs = {name: {"eval": 1} for name in names}
    stream = EvalStream(
        index, modalities, needs, batch_size, on_error="skip", max_failures=1, optional=names, rank=0, world=1
    )
    with closing(stream):
        done = 0
        for batch in stream:
            done += len(batch) + len(batch.faults)
            for name in names:
                views, owner = unpack_items(batch, name)
                if len(owner):
                    rows = encode_in_parts(partial(model.features, name), views, batch_size)
                    keys = {number: index.key(number) for number in owner.tolist()}
                    require_usable(rows, owner, keys, f"the features of {name!r}", unit=True)
                    yield name, F.normalize(rows, dim=1), owner, done


def _within(rows: Tensor, owner: Tensor) -> Tensor:
    """Cosine of each row to the nearest one of another sample, -1 without one, [n] on the CPU."""
    parts, owner = [], owner.to(rows.device)
    for some, own in zip(torch.split(rows, 1024), torch.split(owner, 1024), strict=True):
        with exact_products():
            parts.append((some @ rows.T).masked_fill(own[:, None] == owner, -1).amax(1))
    return torch.cat(parts).cpu()


def _name(index: ShardIndex, number: int) -> str:
    origin = index.origin(number)
    return f"{index.key(number)} of {origin.shard}"


def _tell(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
