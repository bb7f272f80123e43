"""MSR-VTT: `train_val_videodatainfo.json` or `test_videodatainfo.json`, with the videos (`video0.mp4`) below one folder.

    {"videos": [{"video_id": "video0", "split": "train", ...}], "sentences": [{"video_id": "video0", "caption": "..."}], ...}

Each video is one sample, with its 20 captions in the order of the file. Captions of a video that is not in `videos` are a row
without a video, which cannot be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmssl.curation.importers.formats import Found, table_format
from mmssl.curation.importers.records import NamedMedia, record_table, usual_root
from mmssl.curation.pack_columns import Columns, Table
from mmssl.curation.pack_config import PackConfig

NAME = "msrvtt"


def read_msrvtt(found: Found, config: PackConfig, root: Path | None) -> Table:
    """A row for each video, with its captions."""
    captions: dict[Any, list[Any]] = {}
    for sentence in found.records("sentences"):
        captions.setdefault(sentence.get("video_id"), []).append(sentence.get("caption"))
    base = usual_root(found, root, "videos", "TrainValVideo")
    media = NamedMedia(base, "mp4")
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
    videos, sentences = found.records("videos"), found.records("sentences")
    return bool(videos and sentences) and "video_id" in videos[0] and {"video_id", "caption"} <= sentences[0].keys()


MSRVTT = table_format(
    NAME, "JSON with `videos` (video_id, split) and `sentences` (video_id, caption)", _recognise, read_msrvtt
)
