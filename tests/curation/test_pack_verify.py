"""Packing checks header and end of every file; what is left out is printed by reason, with its lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.curation.pack import PackConfig, pack
from mmssl.curation.pack_formats import BadRow, verify_media
from mmssl.curation.pack_report import skipped_table
from mmssl.data.media.encode import encode_clip
from mmssl.data.shards.writer import Manifest, ShardRecord
from pipelines import cli
from pipelines.command import guarded
from tests.curation.test_pack import class_folder, picture, samples, table
from tests.curation.test_pack_media import media

SKIP = PackConfig(on_error="skip", shuffle=None)


@pytest.mark.parametrize("name", media())
def test_whole_files_pass_and_truncated_ones_are_refused(name: str) -> None:
    data = media()[name]
    verify_media("row", name, data)
    with pytest.raises(BadRow, match="row: undecodable"):
        verify_media("row", name, data[: len(data) * 6 // 10])


def test_a_video_file_with_sound_alone_is_a_sound() -> None:
    verify_media("row", "mp4", media()["m4a"])
    silent = encode_clip("mp4", np.zeros((4, 32, 32, 3), np.uint8), None, fps=8)
    verify_media("row", "mp4", silent)


def test_a_truncated_picture_is_named_while_packing(tmp_path: Path) -> None:
    path = table(tmp_path, [(f"img/{number}.jpg", "fine") for number in range(3)])
    (tmp_path / "img" / "1.jpg").write_bytes(picture(1)[:-40])
    with pytest.raises(DataError, match=r"line 3 of .*captions\.csv: undecodable: truncated file: got \d+ bytes"):
        pack(path, tmp_path / "out", PackConfig(shuffle=None))
    manifest = pack(path, tmp_path / "out", SKIP)
    assert (manifest.samples, manifest.skipped) == (2, {"undecodable": 1})
    unseen = pack(path, tmp_path / "all", PackConfig(shuffle=None, verify=False))
    assert samples(unseen)["1"]["jpg"] == picture(1)[:-40]


def test_what_is_left_out_is_printed_by_reason(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = class_folder(tmp_path / "pets", 8)
    for number in range(5):
        (folder / "cat" / "deeper" / f"{number}.jpg").write_bytes(picture(number)[:-9])
    (folder / "dog" / "deeper" / "0.jpg").write_bytes(b"")
    assert guarded(cli.full(), ["shards", "pack", str(folder), str(tmp_path / "out"), "--on-error", "skip"]) == 0
    said = capfd.readouterr().err
    assert "undecodable" in said
    assert "and 2 more" in said
    assert "dog/deeper/0.jpg: the file has no bytes" in said
    assert "18 samples in 1 shards, 6 rows left out" in said


def test_the_table_has_the_first_rows_of_each_reason(tmp_path: Path) -> None:
    def skipped(row: int, reason: str) -> dict[str, object]:
        return {"row": row, "where": f"line {row + 2} of x.csv", "reason": reason, "detail": "d"}

    shards = (
        ShardRecord("0.tar", 0, 3, 1, 0, "", (skipped(7, "a"), skipped(2, "b"))),
        ShardRecord("1.tar", 3, 9, 1, 0, "", (skipped(5, "b"), skipped(1, "b"))),
    )
    assert skipped_table(Manifest(tmp_path, {}, shards), shown=2).splitlines()[1:] == [
        "b                 3",
        "  line 3 of x.csv: d",
        "  line 4 of x.csv: d",
        "  and 1 more",
        "a                 1",
        "  line 9 of x.csv: d",
    ]
    assert skipped_table(Manifest(tmp_path, {}, ())) == ""
