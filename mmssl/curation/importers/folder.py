"""Folders to pack: a folder a class, or media files with their captions beside them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmssl.core.errors import DataError, os_words
from mmssl.curation.importers.formats import OF_TABLES, Format, Found
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_formats import BadRow, convertible_extensions, packed_extensions, read_media
from mmssl.curation.pack_items import Item, RowSource
from mmssl.curation.pack_keys import Keys
from mmssl.data.modalities.usual import file_formats

_log = logging.getLogger(__name__)

_STATS = "_stats.json"  # of img2dataset, beside each of its folders
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""Folders that operating systems leave; names that begin with a dot are skipped, too."""
CSV_SERIES = (
    "Series in .csv are packed as .npy: convert each with numpy.save(path, numpy.loadtxt(file, delimiter=',')), and skiprows=1 "
    "where it has a header line"
)


class FolderSource(RowSource):
    """Media files at any depth below a folder. `x.jpg` and `x.wav` make one sample: files of one name and different modalities.

    With a text beside some media file, `photo.txt`, or `photo.json` with a "caption" (as img2dataset writes them), the texts are
    the captions, each line of a `.txt` is one, and the folders mean nothing. Otherwise each folder directly below is a class, in
    the order of sorted names; one without media files is none. Where every such folder has its media in two or more folders of
    its own, and none beside them (`train/cat`, `train/dog`, `val/cat`, ...), they are taken for splits, and refused unless the
    format was named. Hidden and system folders are skipped at any depth, other files are counted in a warning.

    Args:
        found: the folder.
        config: names of the classes in the order of the folders (None: the names of the folders), keys, metadata, and whether
            the format was named.
        lines: whether each line of a `.txt` is a caption; else its whole text is one.
        root: not used: paths start from the folder.

    Raises:
        DataError: no media files, folders that look like splits, or another number of class names than of class folders.
    """

    kind = "folder"

    def __init__(self, found: Found, config: PackConfig, root: Path | None = None, *, lines: bool = True) -> None:
        folder, class_names = found.path, config.class_names
        self.folder, self.name, self.lines = folder, folder.name, lines
        wanted = (*packed_extensions(), *convertible_extensions())
        files = sorted(files_below(folder))
        media = [path for path in files if path.suffix[1:].lower() in wanted]
        self.metadata = config.metadata
        self._texts = {path: text for path in media if (text := _text_beside(path)) is not None}
        samples = _samples(folder, media)
        self.captioned, self.labelled = bool(self._texts), not self._texts
        self.files: list[tuple[tuple[Path, ...], int | None]] = [(paths, None) for paths in samples]
        if self.labelled:
            if config.format is None:
                _refuse_splits(folder, media)
            self._number_classes(samples, class_names)
        elif class_names is not None:
            raise DataError(f"got class names for {folder}, whose files have captions beside them: leave the names out")
        stems = [paths[0].stem for paths, _ in self.files]
        self.keys = Keys(stems, lambda row: str(self.files[row][0][0])) if config.keys is not None else None
        self.notes = (*self._notes(set(files) - set(media), media), *(() if self.keys is None else self.keys.notes))
        listed = [*(path for paths, _ in self.files for path in paths), *self._texts.values()]
        listing = "\n".join(f"{path.relative_to(folder)}\t{_size(path)}" for path in listed)
        self.fingerprint = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()

    def _notes(self, others: set[Path], media: list[Path]) -> tuple[str, ...]:
        """Sentences on the files that are not packed; those of other formats are warned of at once."""
        beside = {path.with_suffix(end) for path in media for end in (".txt", ".json")}
        left = [path for path in others if not (self.captioned and path in beside) and not path.name.endswith(_STATS)]
        alone = [path.name for path in left if self.captioned and path.suffix in (".txt", ".json")]
        _warn_of_others(self.folder, Counter(path.suffix.lower() or "no extension" for path in left))
        if not alone:
            return ()
        return (
            f"{len(alone):,} texts have no picture, sound or video of their name beside them, such as {min(alone)}",
        )

    def _number_classes(self, samples: list[tuple[Path, ...]], class_names: tuple[str, ...] | None) -> None:
        deep = [paths for paths in samples if paths[0].parent != self.folder]
        classes = sorted({paths[0].relative_to(self.folder).parts[0] for paths in deep})
        if not classes:
            texts = sum(path.suffix.lower() == ".csv" for path in files_below(self.folder)) > 1  # one is a table
            raise DataError(
                f"{self.folder} has no class folders with media files: wanted <class>/<file>.jpg and so on "
                f"({', '.join(packed_extensions())}), or captions <file>.txt beside the files; or write a table of their paths"
                + f". {CSV_SERIES}"
                * texts
            )
        self.class_names = class_names or tuple(name.replace("_", " ") for name in classes)
        if class_names is not None and len(class_names) != len(classes):
            raise DataError(f"got {len(class_names)} class names for the {len(classes)} class folders of {self.folder}")
        numbers = {name: number for number, name in enumerate(classes)}
        self.files = [(paths, numbers[paths[0].relative_to(self.folder).parts[0]]) for paths in deep]
        self.files.sort(key=lambda one: (one[1], one[0]))
        self.files += [(paths, None) for paths in samples if paths[0].parent == self.folder]

    def __len__(self) -> int:
        return len(self.files)

    def where(self, row: int) -> str:
        return " and ".join(map(str, self.files[row][0]))

    def item(self, row: int) -> Item:
        paths, label = self.files[row]
        path, where = paths[0], self.where(row)
        if self.labelled and label is None:
            raise BadRow(where, "no_class", "the file lies beside the class folders, wanted it in one of them")
        several = Counter(map(_modality, paths))
        if len(several) < len(paths):
            doubled = " and ".join(one.name for one in paths if several[_modality(one)] > 1)
            raise BadRow(where, "ambiguous", f"{doubled} are of one modality: rename or remove all but one of them")
        captions = _captions(path, self._texts.get(path), self.lines) if self.captioned else ()
        fields: dict[str, bytes | np.ndarray] = dict(read_media(str(one), one) for one in paths)
        if self.metadata:
            fields["json"] = _metadata(path)
        return Item(where, fields, captions, label, None if self.keys is None else self.keys.key(row))


def files_below(folder: Path, depth: int | None = None) -> Iterator[Path]:
    """All files below a folder, and links that lead nowhere, without those in hidden and system folders; down to a depth, where 1
    is the folder itself."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name in SYSTEM_FOLDERS:
            continue
        if path.is_dir():
            if depth is None or depth > 1:
                yield from files_below(path, None if depth is None else depth - 1)
        elif path.is_file() or path.is_symlink():
            yield path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refuse_splits(folder: Path, media: list[Path]) -> None:
    """Refuse class folders that all hold no media themselves, but two or more folders with media."""
    below: dict[str, set[str]] = {}
    for path in media:
        name, *rest = path.relative_to(folder).parts
        if rest:
            below.setdefault(name, set()).add(rest[0] if rest[1:] else "")
    if below and all("" not in names and len(names) > 1 for names in below.values()):
        first = min(below)
        raise DataError(
            f"{folder} has folders of folders with media, such as {first}/{min(below[first])}: wanted one folder a class. Pack "
            f"{folder / first} if its folders are the classes, or insist on {', '.join(sorted(below)[:3])} as classes with "
            "--format folder"
        )


def _samples(folder: Path, media: list[Path]) -> list[tuple[Path, ...]]:
    """Media files by sample: those of one name, in the order of the modalities; each alone where all are of one modality."""
    named: dict[Path, list[Path]] = {}
    for path in media:
        named.setdefault(path.with_suffix(""), []).append(path)
    samples: list[tuple[Path, ...]] = []
    for paths in named.values():
        alone = len({_modality(path) for path in paths}) == 1
        samples += [(path,) for path in paths] if alone else [tuple(sorted(paths, key=_modality))]
    several = [paths for paths in samples if paths[1:]]
    if several:
        example = " and ".join(path.name for path in several[0])
        _log.warning("%s: %d samples are several files of one name each, such as %s", folder, len(several), example)
    return samples


def _modality(path: Path) -> int:
    """Number of the modality whose format a media file has."""
    extension = path.suffix[1:].lower()
    readers = (extension in (*formats.begins, *formats.convertible) for formats in file_formats().values())
    return list(readers).index(True)


def _text_beside(path: Path) -> Path | None:
    """The file with the caption of a media file: of its name, `.txt` or else `.json`."""
    return next((text for end in (".txt", ".json") if (text := path.with_suffix(end)).is_file()), None)


def _captions(path: Path, text: Path | None, lines: bool) -> tuple[str, ...]:
    if text is None:
        raise BadRow(
            str(path), "empty_caption", f"other files have captions beside them, and there is no {path.stem}.txt"
        )
    try:
        content = text.read_text("utf-8")
        found = json.loads(content).get("caption") if text.suffix == ".json" else content
    except (OSError, ValueError, AttributeError) as error:
        raise BadRow(str(path), "bad_caption", f"{text} cannot be read: {os_words(error)}") from error
    if not isinstance(found, str) or not found.strip():
        raise BadRow(str(path), "empty_caption", f"no text in {text}")
    several = found.split("\n") if lines and text.suffix == ".txt" else [found]
    return tuple(line for line in several if line.strip())


def _metadata(path: Path) -> bytes:
    beside = path.with_suffix(".json")
    try:
        data = beside.read_bytes()
        json.loads(data)
    except (OSError, ValueError) as error:
        raise BadRow(str(path), "bad_metadata", f"{beside} cannot be read: {os_words(error)}") from error
    return data


def _warn_of_others(folder: Path, others: Counter[str]) -> None:
    if others:
        counts = ", ".join(f"{count} {name}" for name, count in others.most_common(8))
        wanted = ", ".join(packed_extensions()) + f". {CSV_SERIES}" * (others[".csv"] > 1)  # one is a table
        _log.warning("%s: files of other formats are not packed: %s; wanted %s", folder, counts, wanted)


FOLDER = Format(
    "folder",
    "a folder with a folder a class, or with captions beside the files",
    lambda found: found.path.is_dir(),
    FolderSource,
    OF_TABLES,
)
