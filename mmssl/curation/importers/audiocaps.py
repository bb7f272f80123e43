"""AudioCaps: `train.csv`, `val.csv`, `test.csv` with the columns audiocap_id, youtube_id, start_time, caption.

The sounds are found below the root, named by youtube_id, `Y` + youtube_id, youtube_id_start_time or audiocap_id. In val and test
each clip has five rows: they make one sample. Source: https://github.com/cdjkim/audiocaps
"""

from __future__ import annotations

from pathlib import Path

from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import NamedMedia
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "audiocaps"
_COLUMNS = ("youtube_id", "start_time", "audiocap_id")


def read_audiocaps(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each caption; the rows of a clip are grouped."""
    usual = Columns(audio="file", captions=("caption",))
    table = read_csv(found.path, root, ",", kind=NAME, usual=usual, grouped=True)
    media = NamedMedia(table.root, "wav")
    rows = zip(*(table.column(name) for name in _COLUMNS), strict=True)
    return table.with_values(
        "file",
        [
            media.path(youtube, f"Y{youtube}", f"{youtube}_{start}", number) if youtube else None
            for youtube, start, number in rows
        ],
    )


AUDIOCAPS = table_format(
    NAME,
    "CSV with the columns audiocap_id, youtube_id, start_time, caption; sounds named by one of them",
    lambda found: {*_COLUMNS, "caption"} <= found.columns,
    read_audiocaps,
)
