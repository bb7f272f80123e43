"""Test sets as folders in CLIP_benchmark's WebDataset layout, or as `mmssl shards pack` writes them: what measures them.

SET/test/0.tar, 1.tar, ...                 samples: a picture, sound or clip with .cls (class number), .npy (multi-hot vector)
                                           or .txt (captions)
SET/test/nshards.txt                       number of shards; the layout's guard against a download that was cut short
SET/classnames.txt                         one name a line
SET/zeroshot_classification_templates.txt  one sentence a line, with {c} or {} for the name
SET/dataset_type.txt                       retrieval (each line of a .txt is a caption) or multilabel; without it, .cls counts
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.modalities.class_names import CLASS_NAMES_FILE
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.manifests import SET_TYPE_FILE
from mmssl.evaluation.class_names import beside
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig
from mmssl.evaluation.labelled.zero_shot import ZeroShotConfig
from mmssl.evaluation.retrieval import RetrievalConfig

SPLIT, COUNT_FILE = "test", "nshards.txt"


def is_set(folder: Path) -> bool:
    """Whether a folder is a test set: it has shards, or its folder `test` has."""
    return any(any(place.glob("*.tar")) for place in (folder / SPLIT, folder))


def set_evaluators(
    folder: Path, name: str, modalities: Mapping[str, Modality], shared: Collection[str]
) -> dict[str, EvaluatorConfig]:
    """The evaluators that measure a test set: zero-shot classification, multi-label classification or retrieval.

    Args:
        folder: the set.
        name: its name in results.
        modalities: of the model, with those of labels.
        shared: modalities in the model's shared space. Those that the first shard has are measured, each pair of them in retrieval;
            if there are several, their names follow that of the set.

    Raises:
        DataError: no such folder, shards that are missing, or nothing in it that the model can be measured by.
    """
    shards = _shards(folder)
    index = ShardIndex.open([min(shards.glob("*.tar"))])
    there = [one for one in shared if set(modalities[one].extensions) & set(index.extensions)]
    things = [one for one in there if not modalities[one].language]
    prompts = next((one for one in shared if modalities[one].language), None)
    kind = _type(folder)
    made: dict[tuple[str, ...], EvaluatorConfig] = {}
    if kind != "retrieval" and prompts is not None and beside([str(shards)], CLASS_NAMES_FILE):
        classify = MultiLabelZeroShotConfig if kind == "multilabel" else ZeroShotConfig
        labels = str(classify.model_fields["labels"].default)
        if set(modalities[labels].extensions) & set(index.extensions):
            made = {(one,): classify(shards=(str(shards),), modality=one, prompts=prompts) for one in things}
    if kind == "retrieval" or (kind is None and prompts in there) or not made:
        made |= {pair: RetrievalConfig(shards=(str(shards),), pair=pair) for pair in combinations(there, 2)}
    if not made:
        raise DataError(
            f"{folder}: its samples have {', '.join(index.extensions)}, and the model compares {', '.join(shared) or 'nothing'}: "
            f"wanted .cls and {CLASS_NAMES_FILE}, .npy and dataset_type.txt multilabel, or two of the model's modalities"
        )
    kinds = [config.kind for config in made.values()]  # type: ignore[attr-defined]
    return {
        "_".join((name, *(names if kinds.count(kind) > 1 else ()), *([kind] if len(set(kinds)) > 1 else []))): config
        for (names, config), kind in zip(made.items(), kinds, strict=True)
    }


def _shards(folder: Path) -> Path:
    """The folder of the shards of a set, all of them there."""
    place = next((place for place in (folder / SPLIT, folder) if any(place.glob("*.tar"))), None)
    if place is None:
        inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        what = f"holds {', '.join(inside[:8])}" if inside else "is empty" if folder.is_dir() else "is no folder"
        raise DataError(f"the test set {folder} {what}; wanted {SPLIT}/0.tar, {SPLIT}/1.tar, ... in it")
    count = place / COUNT_FILE
    if count.is_file():
        text, found = count.read_text().strip(), len(list(place.glob("*.tar")))
        if not text.isdecimal() or int(text) != found:
            raise DataError(f"{place} has {found} shards, and its {COUNT_FILE} says {text!r}: fetch the missing ones")
    return place


def _type(folder: Path) -> str | None:
    file = folder / SET_TYPE_FILE
    if not file.is_file():
        return None
    kind = file.read_text().strip()
    if kind not in ("retrieval", "multilabel"):
        raise DataError(f"{file}: got {kind!r}, wanted retrieval or multilabel, or no such file for one class a sample")
    return kind
