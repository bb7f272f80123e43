"""Published choices between captions: the JSON files of ARO, SugarCrepe and Winoground, beside a folder of their pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl.core.errors import DataError, os_words

CaptionEntry = Mapping[str, Any]
Box = tuple[int, int, int, int]
ENDINGS = ("", ".png", ".jpg", ".jpeg")
"""Tried behind the name of a picture: Winoground's names have none."""
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


@dataclass(frozen=True)
class Example:
    """Pictures, and two captions: the first is true of the first picture, the second of the second, or of none.

    Attributes:
        name: file and number of the entry.
        pictures: one file, or two.
        boxes: of each picture the part to take, left, top, width, height in pixels; None: all of it.
        captions: two.
        kind: relation, attributes or tag, as the file names it; the file's name if it names none.
        file: name of the file without its ending.
    """

    name: str
    pictures: tuple[Path, ...]
    boxes: tuple[Box | None, ...]
    captions: tuple[str, str]
    kind: str
    file: str


@dataclass(frozen=True)
class Layout:
    """How a published file names its parts.

    Attributes:
        pictures, captions: keys of an entry; the first caption is true of the first picture.
        kind: the kind of an entry; None: the file's name.
    """

    pictures: tuple[str, ...]
    captions: tuple[str, str]
    kind: Callable[[CaptionEntry], object] = lambda entry: None


LAYOUTS: Mapping[str, Layout] = {
    "SugarCrepe": Layout(("filename",), ("caption", "negative_caption")),
    "ARO": Layout(
        ("image_path",),
        ("true_caption", "false_caption"),
        lambda entry: entry.get("relation_name") or " ".join(map(str, entry.get("attributes") or ())),
    ),
    "Winoground": Layout(
        ("image_0", "image_1"),
        ("caption_0", "caption_1"),
        lambda entry: entry.get("collapsed_tag") or entry.get("tag"),
    ),
}
"""Name of a set -> layout: of SugarCrepe's seven files, ARO's two of Visual Genome, and Winoground's `examples.jsonl`."""


class KeptExamples:
    """The examples of files, read by the first run of an evaluator.

    Args:
        files: JSON or JSON-lines files of one layout.
        folder: of the pictures.
        limit: number of examples, the first ones; None: all.
    """

    reads = ()

    def __init__(self, files: Sequence[Path], folder: Path, limit: int | None) -> None:
        self.files, self.folder, self.limit = tuple(files), folder, limit
        self._examples: list[Example] | None = None

    def open(self) -> list[Example]:
        """The examples.

        Raises:
            DataError: a file cannot be read, is of no known layout or of another than the first, or a picture is not there.
        """
        if self._examples is None:
            found = [example for file in self.files for example in read_examples(file, self.folder)]
            counts = {example.file: len(example.pictures) for example in found}
            if len(set(counts.values())) > 1:
                raise DataError(
                    f"files: {' and '.join(counts)} have one and two pictures an entry; give each layout an evaluator of its own"
                )
            self._examples = found[: self.limit]
        return self._examples

    def digest(self) -> str:
        """Hash of the examples, and of the names and sizes of their pictures."""
        sizes = {path: path.stat().st_size for example in self.open() for path in example.pictures}
        whole = [(e.name, e.captions, e.boxes, [(p.name, sizes[p]) for p in e.pictures]) for e in self.open()]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def close(self) -> None:
        """Forget the examples; the next run reads them again."""
        self._examples = None


def read_examples(file: Path, folder: Path) -> list[Example]:
    """The examples of a file; `LAYOUTS` are told by their keys.

    Args:
        file: a JSON list, or object of numbered entries; or, as .jsonl, one entry a line.
        folder: of the pictures that it names.

    Raises:
        DataError: see `KeptExamples.open`.
    """
    entries = _entries(file)
    first = entries[0][1]
    layout = next((one for one in LAYOUTS.values() if {*one.pictures, *one.captions} <= set(first)), None)
    if layout is None:
        wanted = "; ".join(f"{name}: {', '.join((*one.pictures, *one.captions))}" for name, one in LAYOUTS.items())
        raise DataError(
            f"{file}: its entries have {', '.join(sorted(first)[:12]) or 'no key'}; wanted the keys of {wanted}"
        )
    found = [_example(f"{file.name}, entry {number}", entry, layout, file.stem, folder) for number, entry in entries]
    missing = dict.fromkeys(path for example in found for path in example.pictures if not path.is_file())
    if missing:
        few = ", ".join(path.name for path in [*missing][:3])
        raise DataError(
            f"{file}: {len(missing)} of its pictures are not in {folder}, such as {few}; give their folder as `pictures`"
        )
    return found


def _entries(file: Path) -> list[tuple[str, CaptionEntry]]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            whole: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            whole = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {os_words(error)}") from error
    numbered: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(whole, dict):
        numbered = iter(whole.items())
    elif isinstance(whole, list):
        numbered = iter(enumerate(whole))
    found: list[tuple[str, CaptionEntry]] = [
        (str(number), entry) for number, entry in numbered if isinstance(entry, dict)
    ]
    if not found or len(found) < len(whole):
        raise DataError(
            f"{file}: got something else than entries, wanted a list of objects, or an object of numbered ones"
        )
    return found


def _example(name: str, entry: CaptionEntry, layout: Layout, stem: str, folder: Path) -> Example:
    captions = [entry.get(key) for key in layout.captions]
    names = [entry.get(key) for key in layout.pictures]
    for key, value in zip((*layout.pictures, *layout.captions), (*names, *captions), strict=True):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{name}: got {value!r} for {key!r}, wanted text")
    box: Box | None = None
    if all(key in entry for key in _BOX):
        try:
            left, top, width, height = (int(entry[key]) for key in _BOX)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{name}: got {[entry[key] for key in _BOX]} for {', '.join(_BOX)}, wanted pixels"
            ) from error
        box = (left, top, width, height)
    pictures = tuple(_picture(folder, str(one)) for one in names)
    kind = str(layout.kind(entry) or stem)
    return Example(name, pictures, (box,) * len(pictures), (str(captions[0]), str(captions[1])), kind, stem)


def _picture(folder: Path, name: str) -> Path:
    """The file of a picture; the first name that was tried if none is there."""
    paths = [folder / f"{name}{ending}" for ending in ENDINGS]
    return next((path for path in paths if path.is_file()), paths[0])
