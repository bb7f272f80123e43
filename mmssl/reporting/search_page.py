"""A self-contained HTML page of a search: the query, and the found samples by modality."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, Samples, read
from mmssl.reporting import figures
from mmssl.reporting.report import write_atomically
from mmssl.reporting.score_table import printable

TEMPLATE = Path(__file__).with_name("search.html.jinja")
LARGEST_SOUND = 2_000_000
"""Bytes up to which a sound is part of the page."""
SOUNDS = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "m4a": "audio/mp4"}


@dataclass(frozen=True)
class Shown:
    """What a page shows of a sample: its key, and a picture or sound (data URI) or a text, where it is one."""

    key: str
    text: str = ""
    picture: str = ""
    sound: str = ""


def shown(modality: Modality, key: str, value: Any, data: bytes = b"", extension: str = "", item: int = 0) -> Shown:
    """A decoded value as a page shows it.

    Args:
        modality: that decoded it.
        key: of the sample, or what the query was.
        value: the decoded value.
        data, extension: of the file, for sounds.
        item: which caption of the sample.
    """
    key = printable(key)
    if modality.language:
        return Shown(key, text=printable(value[min(item, len(value) - 1)]))
    if modality.audible and extension in SOUNDS and len(data) <= LARGEST_SOUND:
        return Shown(key, sound=f"data:{SOUNDS[extension]};base64,{base64.b64encode(data).decode()}")
    if modality.visual:
        x = modality.view("eval")(value, {})
        while x.dim() > 3:  # the first frame of a clip
            x = x[0]
        if x.dtype == torch.uint8 and len(x) == 3:
            return Shown(key, picture=figures.picture_uri(x))
    return Shown(key)


def show_sample(index: Samples, modality: Modality, number: int, item: int = 0) -> Shown:
    """A sample of a data set; only its key if it cannot be read any more."""
    try:
        encoded = read(index, number, {modality.name: modality})
        extension = encoded.members[modality.name]
        value = encoded.decode().values[modality.name]
    except BadSample:
        return Shown(printable(index.key(number)))
    reader = encoded.modalities[modality.name]
    return shown(reader, encoded.raw.key, value, encoded.raw.fields[extension], extension, item)


def write_page(path: Path, title: str, query: Shown, found: Mapping[str, Sequence[tuple[Shown, float]]]) -> None:
    """Write the page: no script, no network, all data escaped.

    Args:
        path: of the file; replaced atomically.
        title: heading.
        query: what was searched for.
        found: modality -> (sample, cosine), best first.
    """
    import jinja2

    loader = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    answers = [
        (printable(name), [{"thing": thing, "score": f"{score:.3f}"} for thing, score in some])
        for name, some in found.items()
    ]
    write_atomically(
        path,
        loader.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            title=printable(title), query=query, found=answers
        ),
    )
