"""Packing from parquet and from saved Hugging Face data sets, where their packages are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError
from mmssl.curation.pack import PackConfig, pack
from tests.curation.test_pack import picture, samples

PLAIN = PackConfig(shuffle=None)


def test_parquet_of_paths_and_of_bytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
    texts = ["one", "two", "three"]
    by_path = {"path": [f"{number}.jpg" for number in range(3)], "caption": texts}
    by_bytes = {"image": [{"bytes": picture(number), "path": None} for number in range(3)], "text": texts}
    for name, columns in (("paths", by_path), ("bytes", by_bytes)):
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
        found = samples(pack(tmp_path / f"{name}.parquet", tmp_path / name, PLAIN, workers=2))
        assert [found[str(number)]["txt"].decode() for number in range(3)] == texts
        assert [found[str(number)]["jpg"] for number in range(3)] == [picture(number) for number in range(3)]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"cannot read .*bad\.parquet as parquet"):
        pack(tmp_path / "bad.parquet", tmp_path / "bad")


def test_saved_hugging_face_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "n": datasets.Value("int64")}
    )
    rows = {
        "image": [{"bytes": picture(number), "path": None} for number in range(3)],
        "label": [1, 0, 1],
        "n": [0, 1, 2],
    }
    one = datasets.Dataset.from_dict(rows, features=features)
    one.save_to_disk(tmp_path / "one")
    found = samples(pack(tmp_path / "one", tmp_path / "out", PLAIN, workers=2))
    assert [found[str(number)]["jpg"] for number in range(3)] == [picture(number) for number in range(3)]
    assert [found[str(number)]["txt"].decode() for number in range(3)] == [
        "a photo of a dog",
        "a photo of a cat",
        "a photo of a dog",
    ]
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\ndog\n"
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "both")
    with pytest.raises(DataError, match=r"has the splits \['test', 'train'\], got split=None"):
        pack(tmp_path / "both", tmp_path / "none")
    assert pack(tmp_path / "both", tmp_path / "test", PackConfig(split="test")).samples == 3
