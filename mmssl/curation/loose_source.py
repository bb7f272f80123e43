"""Data sets of files as samples that are read where they lie: folders, tables and all else that `mmssl shards pack` reads."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mmssl.curation.importers.registry import open_source
from mmssl.curation.pack_config import PackConfig
from mmssl.curation.pack_formats import BadRow
from mmssl.curation.pack_items import TEXT, RowSource, encoded_fields, text_members
from mmssl.data.modality import DecodeError
from mmssl.data.shards.loose import LooseIndex
from mmssl.data.shards.manifests import Formats


@dataclass(frozen=True)
class LooseSource:
    """Where a data set of files lies, and how its rows are read.

    Attributes:
        path, config, root: as in `open_source`. Rows keep their order; no captions are made of class names.
    """

    path: Path
    config: PackConfig = field(default_factory=PackConfig)
    root: Path | None = None

    def index(self) -> LooseIndex:
        """Open it as an index of samples.

        Raises:
            DataError: see `open_source`.
        """
        return LooseIndex(self._open)

    def as_json(self) -> dict[str, Any]:
        """The source as plain data, from which `of_json` opens it again."""
        return {
            "path": str(self.path.absolute()),
            "config": self.config.model_dump(mode="json", exclude_defaults=True),
            "root": None if self.root is None else str(self.root.absolute()),
        }

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> LooseSource:
        """The source that `as_json` describes."""
        root = said["root"]
        config = PackConfig.model_validate_json(json.dumps(said["config"]))
        return cls(Path(said["path"]), config, None if root is None else Path(root))

    def _open(self) -> _Rows:
        folder = self.path if self.path.is_dir() else self.path.parent
        return _Rows(open_source(self.path, self.config, self.root), f"{folder}/")


class _Rows:
    """The rows of a source; see `LooseRows`. Keys: of the source, or else the file or line of the row, below `folder`."""

    formats: ClassVar[Formats] = {TEXT: "rows"}  # see `TextModality.reading`

    def __init__(self, source: RowSource, folder: str) -> None:
        self.source, self.name, self._folder = source, source.name, folder
        said = f"{source.kind} {len(source)} {source.fingerprint}"
        self.digest = hashlib.sha256(said.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.source)

    def key(self, row: int) -> str:
        if self.source.keys is not None:
            with contextlib.suppress(BadRow):  # a name without a letter or digit
                return self.source.keys.key(row)
        return self.where(row).replace(self._folder, "")

    def where(self, row: int) -> str:
        return self.source.where(row)

    def members(self, row: int) -> Mapping[str, bytes]:
        try:
            item = self.source.item(row)
            return {**encoded_fields(item, None, PackConfig().quality), **text_members(item.captions, item.label)}
        except BadRow as error:
            raise DecodeError(error.reason, error.detail) from error
