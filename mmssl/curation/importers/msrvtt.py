"""MSR-VTT: `train_val_videodatainfo.json`, `test_videodatainfo.json`, or the table of its test pairs.

    {"videos": [{"video_id": "video0", "split": "train", ...}], "sentences": [{"video_id": "video0", "caption": "..."}], ...}

Each video is one sample, with its 20 captions in the order of the file. Captions of a video that is not in `videos` are a row
without a video, which cannot be used. The 1000 test pairs of retrieval ("1k-A", JSFusion) are a table, one caption a video:

    key,vid_key,video_id,sentence
    ret0,msr9770,video9770,a person is connecting something to system

The lists of its training videos have no captions: those are in the JSON file. Videos (`video0.mp4`) lie below one folder: the root,
or `videos/`, `TrainValVideo/`, `TestVideo/` or `all/` beside the file.
Sources: Xu et al. 2016; Yu et al. 2018, arXiv 1808.02559
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.curation.importers.csv_table import read_csv
from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import NamedMedia, record_table, usual_root
from mmssl.curation.pack_columns import Columns, SourceTable
from mmssl.curation.pack_config import PackConfig

NAME = "msrvtt"
_COLUMNS = {"vid_key", "video_id", "sentence"}


def read_msrvtt(found: Found, config: PackConfig, root: Path | None) -> SourceTable:
    """A row for each video, with its captions; of a table, for each pair."""
    base = usual_root(found, root, "videos", "TrainValVideo", "TestVideo", "all")
    media = NamedMedia(base, "mp4")
    if not found.columns >= _COLUMNS:
        return _read_document(found, base, media)
    usual = Columns(video="file", captions=("sentence",), key="video_id")
    table = read_csv(found.path, base, ",", kind=NAME, usual=usual, grouped=True)
    return table.with_values("file", [media.path(name.strip()) if name else None for name in table.column("video_id")])


def _read_document(found: Found, base: Path, media: NamedMedia) -> SourceTable:
    captions: dict[Any, list[Any]] = {}
    for sentence in found.records("sentences"):
        captions.setdefault(sentence.get("video_id"), []).append(sentence.get("caption"))
    names = [str(video.get("video_id")) for video in found.records("videos")]
    records: list[dict[str, Any]] = [
        {**video, "file": media.path(name), "captions": captions.pop(name, [])}
        for name, video in zip(names, found.records("videos"), strict=True)
    ]
    records += [{"video_id": name, "file": None, "captions": texts} for name, texts in captions.items()]
    names += [str(name) for name in captions]
    usual = Columns(video="file", captions=("captions",))
    return record_table(
        found, NAME, records, base, where=lambda row: f"{names[row]} of {found.path}", usual=usual, split="split"
    )


def _recognise(found: Found) -> bool:
    if found.columns >= _COLUMNS:
        return True
    videos, sentences = found.records("videos"), found.records("sentences")
    return bool(videos and sentences) and "video_id" in videos[0] and {"video_id", "caption"} <= sentences[0].keys()


MSRVTT = table_format(
    NAME,
    "JSON with `videos` (video_id, split) and `sentences` (video_id, caption), or CSV with vid_key, video_id, sentence",
    _recognise,
    read_msrvtt,
)
