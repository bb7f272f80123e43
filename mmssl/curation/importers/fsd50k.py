"""FSD50K: `FSD50K.ground_truth/dev.csv` (fname, labels, mids, split) and `eval.csv` (fname, labels, mids); several classes a sound.

    fname,labels,mids,split
    64760,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music","/m/02sgy,...",train

Sounds lie in `FSD50K.dev_audio/` and `FSD50K.eval_audio/` beside the folder of the tables. Classes are numbered as in the
`vocabulary.csv` beside them; without it, in the order of their names, which is the same. Underscores of names become blanks.
Source: Fonseca et al. 2022, https://zenodo.org/records/4060432
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import NamedMedia, numbered_names, usual_root
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "fsd50k"


def read_fsd50k(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each sound, with the names of its classes."""
    sounds = f"FSD50K.{found.path.stem}_audio"
    usual = Columns(audio="file", labels="classes")
    split = "split" if "split" in found.columns else None
    table = read_csv(
        found.path, usual_root(found, root, f"../{sounds}", sounds), ",", kind=NAME, usual=usual, split=split
    )
    media = NamedMedia(table.root, "wav")
    table = table.with_values("file", [media.path(name.strip()) if name else None for name in table.column("fname")])
    table = table.with_values("classes", [_names(labels) for labels in table.column("labels")], replaces="labels")
    vocabulary = found.path.parent / "vocabulary.csv"
    if not vocabulary.is_file():
        return table
    named = numbered_names(read_csv(vocabulary, None, ",", ("index", "name", "mid")), "index", "name")
    return table.with_classes("classes", [name.replace("_", " ") for name in named])


def _names(labels: Any) -> tuple[str, ...]:
    return tuple(name.strip().replace("_", " ") for name in (labels or "").split(","))


FSD50K = table_format(
    NAME,
    "CSV with the columns fname, labels, mids",
    lambda found: {"fname", "labels", "mids"} <= found.columns,
    read_fsd50k,
    ("delimiter", "separator"),
)
