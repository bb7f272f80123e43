"""Kinetics' tables, as they are distributed, and the part of them that is Kinetics-Sounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.core.errors import DataError
from mmssl.curation.pack import PackConfig, pack
from tests.curation.importers.test_known import packed, put
from tests.curation.test_pack_media import media

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
"playing guitar",---QUuC4vJs,84,94,validate,0
abseiling,--GkrdYZ9Tc,0,10,validate,0
bowling,--nQbRBEz2s,104,114,validate,1
"""


def test_kinetics_and_its_part_with_sounds(tmp_path: Path) -> None:
    source = put(tmp_path, {"validate.csv": KINETICS}) / "validate.csv"
    put(tmp_path, {"video/bowling/--nQbRBEz2s_000104_000114.mp4": media()["mp4"]})
    put(tmp_path, {"video/--GkrdYZ9Tc.mp4": media()["mp4"], "video/---QUuC4vJs_84_94.mp4": media()["mp4"]})
    every = packed(source, "kinetics")
    assert [one["txt"] for one in every] == [
        f"a video of a {name}" for name in ("playing guitar", "abseiling", "bowling")
    ]
    assert (tmp_path / "packed/classnames.txt").read_text().splitlines() == ["abseiling", "bowling", "playing guitar"]
    sounds = packed(source, "kinetics_sounds", format="kinetics_sounds")
    assert [(one["txt"], one["cls"]) for one in sounds] == [
        ("a video of a playing guitar", "12"),
        ("a video of a bowling", "2"),
    ]
    names = (tmp_path / "packed/classnames.txt").read_text().splitlines()
    assert (len(names), names[2], names[12]) == (31, "bowling", "playing guitar"), "the same in all files"
    assert names == sorted(set(names))
    (tmp_path / "video/bowling/--nQbRBEz2s_000104_000114.mp4").unlink()
    with pytest.raises(DataError, match=r"line 4 of .*validate\.csv.*missing_file: .*--nQbRBEz2s_000104_000114\.mp4"):
        pack(source, tmp_path / "out", PackConfig(format="kinetics_sounds", shuffle=None))
    put(tmp_path, {"validate.csv": "\n".join(KINETICS.splitlines()[:1] + KINETICS.splitlines()[2:3])})
    with pytest.raises(DataError, match=r"has no row of a class of Kinetics-Sounds, such as 'blowing nose'"):
        pack(source, tmp_path / "out", PackConfig(format="kinetics_sounds", shuffle=None))
