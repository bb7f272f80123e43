"""Test sets as folders in CLIP_benchmark's WebDataset layout, or as `mmssl shards pack` writes them: what measures them.

SET/test/0.tar, 1.tar, ...                 samples: a picture, sound or clip with .cls (class number), .npy (multi-hot vector)
                                           or .txt (captions)
SET/test/nshards.txt                       number of shards; the layout's guard against a download that was cut short
SET/classnames.txt                         one name a line
SET/zeroshot_classification_templates.txt  one sentence a line, with {c} or {} for the name
SET/dataset_type.txt                       retrieval (each line of a .txt is a caption) or multilabel; without it, .cls counts;
                                           class names and type of a packed set are in SET/test

A set may be an address, too: https://HOST/SET, hf://datasets/NAME/SET, or the page of a data set of Hugging Face's hub, as
CLIP_benchmark takes it. Its nshards.txt must be there then, because folders of servers cannot be listed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from mmssl.core.errors import DataError
from mmssl.data.modalities.class_names import CLASS_NAMES_FILE
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.manifests import SET_TYPE_FILE
from mmssl.data.shards.patience import without_secrets
from mmssl.data.shards.remote import CacheConfig, Remote
from mmssl.data.shards.remote_manifests import fetch_file
from mmssl.evaluation.class_names import beside
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig
from mmssl.evaluation.labelled.zero_shot import ZeroShotConfig
from mmssl.evaluation.prompts import TEMPLATES_FILE, check_templates
from mmssl.evaluation.retrieval import RetrievalConfig

SPLIT, COUNT_FILE = "test", "nshards.txt"
_MOST_SHARDS = 100_000
_PAGE = re.compile(r"(https://huggingface\.co/datasets/[^/]+/[^/]+)/tree/(.+)")


def is_set(folder: Path) -> bool:
    """Whether a folder is a test set: it has shards, or its folder `test` has."""
    return any(any(place.glob("*.tar")) for place in (folder / SPLIT, folder))


@dataclass(frozen=True)
class _Found:
    """What there is of a set.

    Attributes:
        shards: as evaluators take them. first: one of them.
        kind: what `dataset_type.txt` says; None: there is none.
        named: whether it has class names.
        texts: class names and templates, where evaluators do not find them by themselves.
    """

    shards: str
    first: str
    kind: str | None
    named: bool
    texts: Mapping[str, tuple[str, ...]]


def set_evaluators(
    place: Path | str,
    name: str,
    modalities: Mapping[str, Modality],
    shared: Collection[str],
    remote: Remote | None = None,
) -> dict[str, EvaluatorConfig]:
    """The evaluators that measure a test set: zero-shot classification, multi-label classification or retrieval.

    Args:
        place: folder of the set, or its address.
        name: its name in results.
        modalities: of the model, with those of labels.
        shared: modalities in the model's shared space. Those that the first shard has are measured, each pair of them in retrieval;
            if there are several, their names follow that of the set.
        remote: client for addresses; None: one with the usual cache.

    Raises:
        DataError: no such folder, shards that are missing, or nothing in it that the model can be measured by.
    """
    remote = remote or CacheConfig().build()
    found = _local(place) if isinstance(place, Path) else _remote(place, remote)
    index = ShardIndex.open([found.first], remote=remote)
    there = [one for one in shared if set(modalities[one].extensions) & set(index.extensions)]
    things = [one for one in there if not modalities[one].language]
    prompts = next((one for one in shared if modalities[one].language), None)
    made: dict[tuple[str, ...], EvaluatorConfig] = {}
    if found.kind != "retrieval" and prompts is not None and found.named:
        classify = MultiLabelZeroShotConfig if found.kind == "multilabel" else ZeroShotConfig
        labels = str(classify.model_fields["labels"].default)
        if set(modalities[labels].extensions) & set(index.extensions):
            # Texts are not checked again: names of a set may repeat.
            made = {
                (one,): classify(shards=(found.shards,), modality=one, prompts=prompts).model_copy(
                    update=dict(found.texts)
                )
                for one in things
            }
    captioned = found.kind == "retrieval" or (found.kind is None and prompts in there) or not made
    pairs = combinations(there if captioned else things, 2)
    made |= {pair: RetrievalConfig(shards=(found.shards,), pair=pair) for pair in pairs}
    if not made:
        compared = ", ".join(shared) or "nothing"
        raise DataError(
            f"{without_secrets(str(place))}: its samples have {', '.join(index.extensions)}, and the model compares {compared}: "
            f"wanted .cls and {CLASS_NAMES_FILE}, .npy and dataset_type.txt multilabel, or two of the model's modalities"
        )
    kinds = [config.kind for config in made.values()]  # type: ignore[attr-defined]
    return {
        "_".join((name, *(names if kinds.count(kind) > 1 else ()), *([kind] if len(set(kinds)) > 1 else []))): config
        for (names, config), kind in zip(made.items(), kinds, strict=True)
    }


def _local(folder: Path) -> _Found:
    shards = _shards(folder)
    named = bool(beside([str(shards)], CLASS_NAMES_FILE))
    file = next((file for place in (folder, shards) if (file := place / SET_TYPE_FILE).is_file()), None)
    kind = _checked(file.read_text().strip(), str(file)) if file is not None else None
    return _Found(str(shards), str(min(shards.glob("*.tar"))), kind, named, {})


def _remote(address: str, remote: Remote) -> _Found:
    """What an address has, by the files that the layout names."""
    page, mark, secrets = address.partition("?")
    folder, shown = files_address(page), without_secrets(address)

    def text(name: str) -> str | None:
        data = fetch_file(f"{folder}/{name}{mark}{secrets}", remote)
        return None if data is None else data.decode("utf-8-sig")

    count = (text(f"{SPLIT}/{COUNT_FILE}") or "").strip()
    if not count.isdecimal() or not 0 < int(count) <= _MOST_SHARDS:
        raise DataError(
            f"the test set {shown}: {SPLIT}/{COUNT_FILE} says {count!r}, wanted the number of its shards "
            f"({SPLIT}/0.tar, {SPLIT}/1.tar, ...): check the address"
        )
    kind = text(SET_TYPE_FILE)
    files = {"classnames": text(CLASS_NAMES_FILE), "templates": text(TEMPLATES_FILE)}
    texts = {key: tuple(line.strip() for line in one.splitlines() if line.strip()) for key, one in files.items() if one}
    if "templates" in texts:
        lines = texts["templates"]
        try:
            check_templates(lines, [f"{TEMPLATES_FILE}, line {number + 1}" for number in range(len(lines))])
        except ValueError as error:
            raise DataError(f"the test set {shown}: {error}") from error
    return _Found(
        f"{folder}/{SPLIT}/{{0..{int(count) - 1}}}.tar{mark}{secrets}",
        f"{folder}/{SPLIT}/0.tar{mark}{secrets}",
        _checked(kind.strip(), f"{shown}: {SET_TYPE_FILE}") if kind is not None else None,
        "classnames" in texts,
        texts,
    )


def files_address(address: str) -> str:
    """The address that files of a set lie below: of a page https://huggingface.co/datasets/USER/NAME/tree/BRANCH, its files."""
    page = _PAGE.fullmatch(address.rstrip("/"))
    return f"{page[1]}/resolve/{page[2]}" if page else address.rstrip("/")


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


def _checked(kind: str, file: str) -> str:
    if kind not in ("retrieval", "multilabel"):
        raise DataError(f"{file}: got {kind!r}, wanted retrieval or multilabel, or no such file for one class a sample")
    return kind
