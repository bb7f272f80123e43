"""Data of `learning.py` as shards: photographs (CIFAR-10), spoken digits (FSDD), sentences of the documentation of Python."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pack_spoken_digits import OWN_TEST, read_speech

from mmssl.data.shards.writer import write_shard

Samples = Iterator[dict[str, Any]]

MODALITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "pictures": ("image", {"kind": "image", "size": 32}),
    "speech": ("audio", {"kind": "audio", "rate": 8000, "seconds": 0.49, "channels": "mono", "pad": "zero"}),
    "sentences": ("text", {"kind": "text", "tokenizer": {"kind": "clip", "context_length": 32}}),
}
"""Data -> its modality, and the settings of that without views."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
NOT_PROSE = re.compile(r"\s|[-+*]\s|.*(::=|>>>|\*\*\*|---|===|\|)", re.DOTALL)
OTHERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
"""Folders of the standard library that are left out: those of tests, and of what is not in every installation."""


def pack_pictures(source: Path, folder: Path, count: int, caption: Callable[[int, int], str] | None = None) -> None:
    """Write the first pictures of an npz file with their labels, and captions of (number, class), as one shard."""
    arrays = np.load(source)
    jpeg, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]

    def samples() -> Samples:
        for i in range(min(count, len(labels))):
            picture = jpeg[offsets[i] : offsets[i + 1]].tobytes()
            text = {} if caption is None else {"txt": caption(i, int(labels[i])).encode()}
            yield {"__key__": f"{i:05d}", "jpg": picture, "cls": str(labels[i]).encode(), **text}

    write_shard(folder, "000000.tar", 0, count, samples())


def pack_speech(source: Path, folder: Path, split: str) -> None:
    """Write the recordings of a split of the Free Spoken Digit Dataset (0 to 4 of each speaker are its test) with their digits."""
    kept = [one for one in read_speech(source) if (one.number in OWN_TEST) == (split == "test")]
    samples = ({"__key__": one.name[:-4], "wav": one.wav, "cls": str(one.digit).encode()} for one in kept)
    write_shard(folder, "000000.tar", 0, len(kept), samples)


def sentences(texts: Iterable[str]) -> list[str]:
    """Sentences of 5 to 40 words of paragraphs of prose, each once, in order."""
    paragraphs = (paragraph for text in texts for paragraph in re.split(r"\n\s*\n", text))
    prose = (" ".join(paragraph.split()) for paragraph in paragraphs if not NOT_PROSE.match(paragraph))
    every = (sentence for paragraph in prose for sentence in SENTENCE_END.split(paragraph))
    return [*dict.fromkeys(one for one in every if 5 <= len(one.split()) <= 40 and one[-1] in ".!?")]


def docstrings(folder: Path) -> Iterator[str]:
    """Docstrings of all Python files below a folder, but for `OTHERS`, in the order of their paths."""
    for path in sorted(folder.rglob("*.py")):
        if OTHERS.isdisjoint(path.relative_to(folder).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def pack_sentences(folder: Path) -> None:
    """Write `train` and `test` (every eighth) of the sentences in the documentation of Python's standard library."""
    every = sentences(docstrings(Path(sysconfig.get_path("stdlib"))))
    for split, kept in (("train", [one for i, one in enumerate(every) if i % 8]), ("test", every[::8])):
        samples = ({"__key__": f"{i:05d}", "txt": one.encode()} for i, one in enumerate(kept))
        write_shard(folder / split, "000000.tar", 0, len(kept), samples)
