"""Several classes a sample: a vector of zeros and ones beside each medium, class names type of the set, and their evaluation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.curation.check import check_shards
from mmssl.curation.filter import FilterConfig, filter_shards
from mmssl.curation.leakage import find_leaks
from mmssl.curation.pack import Columns, PackConfig, pack
from mmssl.curation.stats import measure_shards
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.shards.remote import CacheConfig
from mmssl.data.shards.writer import Manifest
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig
from mmssl.evaluation.sets import set_evaluators
from tests.curation.test_pack import picture, samples
from tests.data.servers import serve
from tests.evaluation.world import COLOURS, NAMES, configured, knowing_model, modalities, png, write_shard

SCANS = """path,findings
0.jpg,Mass|Fluid
1.jpg,
2.jpg,Mass
"""


def packed(folder: Path, text: str = SCANS, **settings: Any) -> Manifest:
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    (folder / "t.csv").write_text(text)
    columns = Columns(**{"labels": "findings", **settings.pop("columns", {})})
    return pack(
        folder / "t.csv",
        folder / "out",
        PackConfig(**{"shuffle": None, "separator": "|", **settings, "columns": columns}),
    )


def vectors(manifest: Manifest) -> list[list[int]]:
    found = [np.load(io.BytesIO(fields["npy"])) for _, fields in sorted(samples(manifest).items())]
    assert all(vector.dtype == np.uint8 for vector in found)
    return [vector.tolist() for vector in found]


def test_a_column_of_several_classes(tmp_path: Path) -> None:
    assert vectors(packed(tmp_path)) == [[1, 1], [0, 0], [0, 1]], "an empty cell is no class"
    assert (tmp_path / "out/classnames.txt").read_text() == "Fluid\nMass\n"
    assert (tmp_path / "out/dataset_type.txt").read_text() == "multilabel"
    # Another packing in its place leaves nothing of it.
    pack(
        tmp_path / "t.csv",
        tmp_path / "out",
        PackConfig(columns=Columns(captions=("findings",)), on_error="skip"),
        overwrite=True,
    )
    assert not (tmp_path / "out/dataset_type.txt").exists()
    (tmp_path / "out/dataset_type.txt").write_text("retrieval")  # somebody else's stays
    pack(tmp_path / "t.csv", tmp_path / "out", PackConfig(columns=Columns(captions=("findings",)), on_error="skip"))
    assert (tmp_path / "out/dataset_type.txt").read_text() == "retrieval"


def test_names_that_are_given_and_numbers(tmp_path: Path) -> None:
    assert vectors(packed(tmp_path, class_names=("Mass", "Nodule", "Fluid"))) == [[1, 0, 1], [0, 0, 0], [1, 0, 0]]
    (tmp_path / "numbers").mkdir()
    numbers = SCANS.replace("Mass", "3").replace("Fluid", "0")
    assert vectors(packed(tmp_path / "numbers", numbers)) == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    (tmp_path / "unknown").mkdir()
    with pytest.raises(
        DataError, match=r"line 2 of .*bad_label: got 'Fluid' in 'findings', wanted one of 1 class names"
    ):
        packed(tmp_path / "unknown", class_names=("Mass",))


def test_rows_of_one_medium_join_their_classes(tmp_path: Path) -> None:
    manifest = packed(tmp_path, "path,findings\n0.jpg,Mass\n1.jpg,Mass\n0.jpg,Fluid\n", group_by="media")
    assert vectors(manifest) == [[1, 1], [0, 1]]


def test_settings_that_contradict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got 'findings' as the column of several classes, and 'path' as that of one"):
        packed(tmp_path, columns={"label": "path"})
    with pytest.raises(DataError, match=r"no column of several classes is named, so the separator '\|' has no effect"):
        packed(tmp_path, columns={"labels": None})
    with pytest.raises(
        DataError, match=r"templates need a class name for each sample of t\.csv, but its samples have several"
    ):
        packed(tmp_path, templates=("a photo of a {}",))
    np.save(tmp_path / "0.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(DataError, match=r"line 2 of .*unsupported: got a \.npy file, wanted none beside the vector"):
        packed(tmp_path, SCANS.replace("0.jpg", "0.npy"))


def test_a_packed_set_is_measured(tmp_path: Path) -> None:
    rows = [(name, name if number % 2 else f"{name};black") for number, name in enumerate(NAMES)]
    for number, name in enumerate(NAMES):
        (tmp_path / f"{name}.png").write_bytes(png(COLOURS[name], number))
    text = "".join(f"{name}.png,{labels}\n" for name, labels in rows)
    (tmp_path / "t.csv").write_text(f"path,colours\n{text}")
    settings = PackConfig(columns=Columns(labels="colours"), separator=";")
    manifest = pack(tmp_path / "t.csv", tmp_path / "set/test", settings)
    known = {**modalities(), "multi_label": MultiLabelConfig().build("multi_label")}
    (config,) = set_evaluators(tmp_path / "set", "colours", known, ("picture", "words")).values()
    assert isinstance(config, MultiLabelZeroShotConfig)
    with config.build(known) as evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
    assert (scores["n"], scores["classes"], scores["n_labels"]) == (8, 8, 11)
    assert float(str(scores["mAP"])) > 0.8
    write_shard(tmp_path / "two/0.tar", [("a", {"png": b"x", "webp": b"y", "npy": b"z"})])
    for name in ("classnames.txt", "dataset_type.txt"):
        (tmp_path / "two" / name).write_text((tmp_path / "set/test" / name).read_text())
    known["still"] = configured(ImageConfig, size=8, extensions=["webp"]).build("still")
    made = set_evaluators(tmp_path / "two", "two", known, ("picture", "still", "words"))
    assert sorted(made) == ["two_picture_multi_label", "two_retrieval", "two_still_multi_label"], (
        "and between the media"
    )
    filter_shards([str(path) for path in manifest.paths], tmp_path / "fewer", FilterConfig())
    assert (tmp_path / "fewer/dataset_type.txt").read_text() == "multilabel"


def test_vectors_of_classes_are_no_arrays_and_no_leaks(tmp_path: Path) -> None:
    places = [tmp_path / f"{name}/0.tar" for name in ("train", "test")]
    for seed, place in zip((0, 10), places, strict=True):
        rows = enumerate(([1, 1], [0, 0], [0, 1]))
        write_shard(place, [(f"{seed}{i}", {"jpg": picture(seed + i), "npy": npy(row)}) for i, row in rows])
        (place.parent / "dataset_type.txt").write_text("multilabel\n")
    train, test = ([str(place)] for place in places)
    report = check_shards(train)
    assert set(report.modalities) == {"image", "multi_label"}
    assert report.modalities["multi_label"].figures["classes of a sample"].mean == 1.0
    assert not [one for one in report.warnings if "array" in one]
    assert set(measure_shards(train).modalities) == {"image", "multi_label"}
    leaks = find_leaks(train, test)
    assert (leaks.leaks, leaks.ok) == ([], True), "samples with the same classes are no copies"
    for place in places:
        (place.parent / "dataset_type.txt").unlink()
    assert {leak.field for leak in find_leaks(train, test).leaks} == {"npy"}, "equal arrays are"


def test_a_packed_set_on_a_server_is_read_as_the_one_on_the_disk(tmp_path: Path) -> None:
    packed(tmp_path)
    stored = {f"/set/{path.name}": path.read_bytes() for path in (tmp_path / "out").iterdir()}
    remote = CacheConfig(folder=tmp_path / "cache", timeout=5, deadline=5).build()
    with serve() as server:
        server.files = stored
        url = [f"{server.url}/set/000000.tar"]
        assert set(check_shards(url, remote=remote).modalities) == {"image", "multi_label"}
        assert set(measure_shards(url, remote=remote).modalities) == {"image", "multi_label"}
        assert filter_shards(url, tmp_path / "kept", remote=remote).kept == 3
        for name in ("classnames.txt", "dataset_type.txt"):
            assert (tmp_path / "kept" / name).read_bytes() == stored[f"/set/{name}"]
        del server.files["/set/manifest.json"]  # the shards of another program
        assert set(check_shards(url, remote=remote).modalities) == {"image", "multi_label"}


def npy(row: list[int]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(row, np.uint8))
    return file.getvalue()
