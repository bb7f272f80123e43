"""Cosine of the two modalities of each sample under a model: the score that CLIP filtering keeps samples by (DataComp 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.core.sample import Fault
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, load
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import EvalStream
from mmssl.data.stream.formats import require_members
from mmssl.evaluation.collect import encode_in_parts, unpack_items
from mmssl.evaluation.common import inference, require_usable
from mmssl.evaluation.embeddings.search import EmbeddedFolder

TILE = 8192
"""Samples whose embeddings are read and multiplied at once."""


def pair_similarities(
    model: EmbeddingModel,
    modalities: Mapping[str, Modality],
    pair: tuple[str, str],
    index: ShardIndex,
    numbers: Sequence[int],
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, dict[int, Fault]]:
    """The cosine of a pair of modalities in each sample, by their evaluation views; of several captions the best counts.

    Args:
        model, modalities: encoders with heads, and what reads their inputs.
        pair: two modalities of the shared space.
        index, numbers: the samples: N of an index, ascending.
        batch_size, workers: as in `EvalStream`; they change no cosine but by rounding.
        progress: called with (samples done, samples in all).

    Returns:
        Cosines [N] float32, NaN where a sample has none; and number -> what is wrong with it, of exactly those.

    Raises:
        ValueError: the model has no shared space for a modality. DataError: no sample at all has one, or a shard cannot be read.
        NumericError: an embedding is not finite, or zero.
    """
    for name in pair:
        model.require(name, shared_space=True)
    chosen = {name: modalities[name] for name in pair}
    require_members([index], chosen)
    needs = {name: {"eval": 1} for name in pair}
    stream = EvalStream(
        index, modalities, needs, batch_size, workers, on_error="skip", max_failures=1, spans=[numbers], rank=0, world=1
    )
    places = np.asarray(numbers, np.int64)
    cosines, done = np.full(len(places), np.nan, np.float32), 0
    with inference(model), closing(stream):
        for batch in stream:
            rows = np.searchsorted(places, batch.index.numpy())
            cosines[rows] = _best_cosines(model, batch, pair, batch_size).cpu().numpy()
            done += len(batch) + len(batch.faults)
            if progress is not None:
                progress(done, len(places))
    unscored = [numbers[row] for row in np.flatnonzero(np.isnan(cosines)).tolist()]
    return cosines, {number: _fault(index, number, chosen) for number in unscored}


def embedded_similarities(
    folder: EmbeddedFolder, pair: tuple[str, str], index: ShardIndex, numbers: Sequence[int]
) -> tuple[np.ndarray, dict[int, Fault]]:
    """As `pair_similarities`, from embeddings that `mmssl embed` wrote of the same shards; float16 ones are less exact.

    Raises:
        DataError: the folder holds embeddings of other samples, or its files are missing.
    """
    if folder.manifest.get("data") != index.digest:
        raise DataError(
            f"{folder.folder} holds embeddings of {folder.manifest.get('samples')} samples of {folder.manifest.get('shards')}, "
            f"wanted those of these {len(index)}, in the same files and order: embed these shards, or name a model"
        )
    (left, left_owners), (right, right_owners) = (folder.rows(name) for name in pair)
    places = np.asarray(numbers, np.int64)
    cosines = np.full(len(places), np.nan, np.float32)
    for start in range(0, len(places), TILE):
        best = cosines[start : start + TILE]
        sample, a, b = _item_pairs(left_owners, right_owners, places[start : start + TILE])
        products = np.einsum("ne,ne->n", left[a].astype(np.float32), right[b].astype(np.float32))
        np.fmax.at(best, sample, products)
    faults = {}
    for number in places[np.isnan(cosines)].tolist():
        detail = f"{folder.folder} has no embeddings of both: it lacks one, or could not be decoded"
        faults[number] = Fault(index.key(number), index.origin(number), ",".join(pair), "missing", detail)
    return cosines, faults


def _item_pairs(a: np.ndarray, b: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of an item of one modality and one of the other in N samples: place of the sample [P], and rows [P] of both.

    Args:
        a, b: numbers of the samples of the rows of each modality, ascending.
        samples: [N].
    """
    first_a, first_b = np.searchsorted(a, samples), np.searchsorted(b, samples)
    count_a = np.searchsorted(a, samples, side="right") - first_a
    count_b = np.searchsorted(b, samples, side="right") - first_b
    count = count_a * count_b
    sample = np.repeat(np.arange(len(samples)), count)
    within = np.arange(len(sample)) - np.repeat(np.cumsum(count) - count, count)
    return sample, first_a[sample] + within // count_b[sample], first_b[sample] + within % count_b[sample]


def _best_cosines(model: EmbeddingModel, batch: Batch, pair: tuple[str, str], chunk: int) -> Tensor:
    """The largest cosine [B] of an item of one modality and an item of the other in each sample of a batch."""
    keys = dict(zip(batch.index.tolist(), batch.keys, strict=True))
    rows, owners = [], []
    for name in pair:
        views, owner = unpack_items(batch, name)
        rows.append(encode_in_parts(partial(model.embed, name), views, chunk))
        require_usable(rows[-1], owner, keys, f"the embedding of {name!r}", unit=True)
        owners.append(owner)
    left, right = (owners[0][:, None] == owners[1]).nonzero(as_tuple=True)
    # Products row by row: equal samples have equal cosines, wherever they lie in their batches.
    cosines = (rows[0][left] * rows[1][right]).sum(1)
    place = torch.searchsorted(batch.index, owners[0][left]).to(cosines.device)
    return cosines.new_full((len(batch),), -torch.inf).scatter_reduce(0, place, cosines, "amax")


def _fault(index: ShardIndex, number: int, modalities: Mapping[str, Modality]) -> Fault:
    """What is wrong with a sample that has no cosine."""
    key, origin = index.key(number), index.origin(number)
    try:
        found = load(index, number, modalities, optional=tuple(modalities)).values
    except BadSample as bad:
        return bad.fault
    for name in [name for name in modalities if name not in found][:1]:
        there = ", ".join(f".{extension}" for extension, _, _ in index.members(number))
        wanted = " or ".join(f".{extension}" for extension in modalities[name].extensions)
        return Fault(key, origin, name, "missing", f"got {there}, wanted {wanted}")
    detail = "the sample could not be read once, and could be read again: run again"
    return Fault(key, origin, "", "unreadable", detail)
