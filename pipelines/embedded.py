"""What verbs need of a folder of embeddings besides its rows: the model that made it, its facts, and the samples that it is of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from mmssl.data.samples import SampleIndex
    from mmssl.evaluation.embeddings.search import EmbeddedFolder, Hit
    from mmssl.recipe.model import Model


def model_of_folder(embedded: EmbeddedFolder, named: Path | None, device: str = "cpu") -> Model:
    """The model that embedded a folder, from where it was, or as it is named.

    Raises:
        DataError: it is not there. CheckpointError: it has other weights.
    """
    from mmssl.core.errors import CheckpointError, DataError
    from mmssl.recipe.load import load
    from mmssl.training.checkpoints.manifest import weights_digest

    folder, manifest = embedded.folder, embedded.manifest
    path = named or Path(str(manifest.get("checkpoint", "")))
    if named is None and not path.exists():
        raise DataError(f"{folder}: the model that embedded it, {path}, is not there: name it by --model")
    model = load(path, device=device)
    if "weights" in manifest and model.checkpoint is not None:
        same = weights_digest(model.checkpoint) == manifest["weights"]
    else:
        same = manifest.get("model") in (None, model.digest())
    if not same:
        raise CheckpointError(
            f"{folder} holds embeddings of another model than {model.checkpoint or path}, or by an earlier version of mmssl: name "
            "the one that embedded it by --model, or embed again"
        )
    return model


def model_facts(model: Model) -> dict[str, Any]:
    """What manifests say of a model; "model" changes with weights and preprocessing."""
    from mmssl.training.checkpoints.manifest import weights_digest

    return {
        "checkpoint": str(model.checkpoint.resolve()) if model.checkpoint else str(model.recipe.weights),
        **({"weights": weights_digest(model.checkpoint)} if model.checkpoint else {}),
        "model": model.digest(),
        "recipe": model.recipe.name,
    }


def searcher_of(embedded: EmbeddedFolder, modality: str, exact: bool) -> Callable[[np.ndarray, int], list[Hit]]:
    """The function (query [E], top) -> hits of a modality: by its index if there is one, or else exact.

    Raises:
        DataError: the index is of other embeddings, or damaged.
    """
    from mmssl.evaluation.embeddings.neighbour_index import open_index

    index = None if exact else open_index(embedded, modality)
    return partial(embedded.search, modality) if index is None else index.search


def samples_of(embedded: EmbeddedFolder, model: Model) -> SampleIndex:
    """The samples of a folder of embeddings, in shards or in files.

    Raises:
        DataError: they are not where they were.
    """
    from mmssl.core.errors import DataError
    from mmssl.curation.loose_source import LooseSource
    from mmssl.data.shards.index import ShardIndex

    manifest = embedded.manifest
    samples: SampleIndex
    if "files" in manifest:
        samples = LooseSource.of_json(manifest["files"]).index()
    else:
        remote = model.recipe.data.cache.build(model.recipe.data.allow_pipe)
        samples = ShardIndex.open(manifest["shards"], remote=remote)
    if manifest.get("data") not in (None, samples.digest):
        raise DataError(f"{embedded.folder}: the samples have changed since they were embedded: embed again")
    return samples
