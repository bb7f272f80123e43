"""Settings of `mmssl shards pack`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmssl.core.config import Config
from mmssl.curation.pack_columns import Columns

SEPARATOR = ","
"""What usually stands between the classes in one cell of a table."""


class PackConfig(Config):
    """Settings of `pack` that the bytes of the shards depend on.

    Attributes:
        format: name of the source's format, see `mmssl.curation.importers.registry.FORMATS`; None: by its contents.
        shard_bytes: a shard is closed when it holds at least this number of bytes;
        shard_samples: ... or this number of samples.
        templates: captions for labelled sources without captions, with `{}` for the class name; of several, one is chosen
            for each sample. None: "a photo of a {}", and so on for sounds and videos. (): no captions.
        class_names: names of the classes in the order of their numbers; None: from the source.
        columns: which columns of a table hold the media, captions and labels.
        separator: between the classes in a cell of `columns.labels`.
        delimiter: of a table in text, one character; None: the one of , ; | and tab that the header has.
        where: conditions on the columns of a table; other rows are not packed. See `mmssl.curation.where`.
        split: which split of a source that has several.
        group_by: "media": the rows of a table with the same media make one sample, with the captions of all in their order; "rows":
            every row makes one. None: as the format has it, which is "rows" unless it is known otherwise.
        keys: "files": keys are the names of the files without extension. None: from the key column, or numbers.
        metadata: the other columns of a table (the `.json` beside a file in a folder) become the sample's `.json`.
        max_side: larger pictures are scaled to this longer side in pixels (PNG stays PNG, all others become JPEG).
        quality: JPEG quality of re-encoded pictures.
        shuffle: seed of the order of samples; None: the order of the source.
        verify: check header and end of each file, without decoding it; damaged files are unusable rows.
        on_error: "raise" at the first row that cannot be used, or "skip" it and say so in the manifest.
    """

    format: str | None = None
    shard_bytes: int = Field(default=256 * 2**20, ge=1)
    shard_samples: int = Field(default=10_000, ge=1)
    templates: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    columns: Columns = Columns()
    separator: str = Field(default=SEPARATOR, min_length=1, exclude_if=lambda separator: separator == SEPARATOR)
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    where: str | None = None
    split: str | None = None
    group_by: Literal["media", "rows"] | None = None
    keys: Literal["files"] | None = None
    metadata: bool = False
    max_side: int | None = Field(default=None, ge=1)
    quality: int = Field(default=95, ge=1, le=100)
    shuffle: int | None = 0
    verify: bool = True
    on_error: Literal["raise", "skip"] = "raise"
