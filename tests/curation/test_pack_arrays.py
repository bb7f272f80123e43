"""Packing, auditing and measuring arrays and series: class folders and tables of `.npy` files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmssl.core.errors import DataError
from mmssl.curation.check import check_shards
from mmssl.curation.pack import Columns, PackConfig, pack
from mmssl.curation.stats import measure_shards
from mmssl.data.modalities.array import ArrayConfig
from mmssl.data.modalities.series import SeriesConfig
from tests.curation.test_pack import samples

PLAIN = PackConfig(shuffle=None)
PULSES = np.random.default_rng(0).normal([0, 50], [1, 5], (6, 400, 2))  # [record, time, channel]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Six series with captions; the fourth has gaps."""
    lines = ["ecg,caption"]
    for number, pulse in enumerate(PULSES):
        holed = np.where((np.arange(400) < 100)[:, None] & (number == 3), np.nan, pulse)
        (tmp_path / f"{number}.npy").write_bytes(npy(holed))
        lines.append(f"{number}.npy,record {number}")
    (tmp_path / "pulses.csv").write_text("\n".join(lines))
    return tmp_path / "pulses.csv"


@pytest.mark.parametrize("columns", [Columns(), Columns(media={"series": "ecg"}), Columns(media={"array": "ecg"})])
def test_a_column_of_arrays_is_packed_byte_for_byte(table: Path, tmp_path: Path, columns: Columns) -> None:
    manifest = pack(table, tmp_path / "out", PackConfig(shuffle=None, columns=columns))
    packed = samples(manifest)
    assert [fields["npy"] for fields in packed.values()] == [(tmp_path / f"{i}.npy").read_bytes() for i in range(6)]
    assert [fields["txt"] for fields in packed.values()] == [f"record {i}".encode() for i in range(6)]


def test_audits_count_gaps_with_a_recipe_and_without(table: Path, tmp_path: Path) -> None:
    pack(table, tmp_path / "out", PLAIN)
    report = check_shards([tmp_path / "out"])
    assert report.ok
    assert report.fields["npy"].decoded == 6
    assert report.modalities["array"].counted == {"shape": {"400 x 2 float64": 6}}
    assert any(one.startswith("1 arrays hold NaN") for one in report.warnings)
    series = SeriesConfig(axes=["time", "channel"], rate=100, channels=2, seconds=1.0).build("ecg")
    assert check_shards([tmp_path / "out"], {"ecg": series}).modalities["ecg"].figures["seconds"].mean == 4.0
    other = SeriesConfig(axes=["time", "channel"], rate=100, channels=3, seconds=1.0).build("ecg")
    assert check_shards([tmp_path / "out"], {"ecg": other}).fault_counts == {"channels npy": 6}


def test_what_a_run_refuses_of_numbers_is_a_fault_of_its_recipe(tmp_path: Path) -> None:
    """Gaps are, unless the recipe fills them; infinite numbers, and nothing but gaps, always."""
    (tmp_path / "all").mkdir()
    for number, odd in enumerate((0.0, np.nan, np.inf)):
        array = np.random.default_rng(number).normal(size=(400, 2))
        array[7, 0] = odd
        (tmp_path / "all" / f"{number}.npy").write_bytes(npy(array))
    (tmp_path / "all" / "3.npy").write_bytes(npy(np.full((400, 2), np.nan)))
    pack(tmp_path, tmp_path / "out", PLAIN)
    for nan, filled, faults in (("refuse", False, 3), ("interpolate", True, 2)):
        series = SeriesConfig(axes=["time", "channel"], rate=100, channels=2, seconds=1.0, nan=nan).build("ecg")  # type: ignore[arg-type]
        array = ArrayConfig(size=8, axes=["height", "width"], channels=1, nan="mean" if filled else "refuse").build(
            "land"
        )  # type: ignore[arg-type]
        assert check_shards([tmp_path / "out"], {"ecg": series}).fault_counts == {"not_finite npy": faults}
        assert check_shards([tmp_path / "out"], {"land": array}).fault_counts == {"not_finite npy": faults}


def test_statistics_are_those_of_each_channel(table: Path, tmp_path: Path) -> None:
    """Without a recipe the axis of 2 beside 400 is the channels; gaps do not count."""
    pack(table, tmp_path / "out", PLAIN)
    found = measure_shards([tmp_path / "out"]).modalities["array"]
    means = [pulse[100 * (number == 3) :].mean(0) for number, pulse in enumerate(PULSES)]
    assert found.mean == pytest.approx(np.mean(means, axis=0))
    assert found.std is not None
    assert found.std[1] == pytest.approx(5, rel=0.05)


def test_class_folders_of_arrays_are_packed(tmp_path: Path) -> None:
    for name in ("forest", "water"):
        folder = tmp_path / "land" / name
        folder.mkdir(parents=True)
        (folder / "0.npy").write_bytes(npy(np.full((4, 8, 8), len(name), np.uint16)))
        np.savez(folder / "1.npz", np.full((4, 8, 8), len(name), np.uint16))
    packed = samples(pack(tmp_path / "land", tmp_path / "out", PLAIN))
    modality = ArrayConfig(axes=["band", "height", "width"], channels=4, size=8).build("land")
    for fields in packed.values():
        (name,) = fields.keys() & {"npy", "npz"}
        value = modality.decode(fields[name], name)
        assert (value == len(("forest", "water")[int(fields["cls"])])).all()
    assert len(packed) == 4
    assert check_shards([tmp_path / "out"]).ok


def test_depth_pictures_are_packed_from_a_column_of_arrays(tmp_path: Path) -> None:
    depth = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(depth).save(tmp_path / "a.png")
    (tmp_path / "depths.csv").write_text("depth,caption\na.png,a slope\n")
    (fields,) = samples(pack(tmp_path / "depths.csv", tmp_path / "out", PLAIN)).values()
    modality = ArrayConfig(axes=["height", "width"], channels=1, size=8, extensions=["png"]).build("depth")
    np.testing.assert_array_equal(modality.decode(fields["png"], "png")[:, :, 0], depth)


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_truncated_files_are_refused_and_several_arrays_of_a_file_are_not(tmp_path: Path, save: Any) -> None:
    file = io.BytesIO()
    save(file, PULSES)
    data, name = file.getvalue(), "a.npz" if save is np.savez else "a.npy"
    (tmp_path / "t.csv").write_text(f"array,caption\n{name},x\n")
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(DataError, match=r"line 2 of .*: undecodable"):
        pack(tmp_path / "t.csv", tmp_path / "out", PLAIN)
    (tmp_path / name).write_bytes(data)
    assert pack(tmp_path / "t.csv", tmp_path / "out", PLAIN).samples == 1
    np.savez(tmp_path / "a.npz", bands=PULSES, mask=PULSES[0])
    (tmp_path / "t.csv").write_text("array,caption\na.npz,x\n")
    assert pack(tmp_path / "t.csv", tmp_path / "two", PLAIN).samples == 1


def test_files_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"nonsense")
    (tmp_path / "t.csv").write_text("array,caption\na.npy,x\n")
    with pytest.raises(DataError, match="wanted a npy file"):
        pack(tmp_path / "t.csv", tmp_path / "out", PLAIN)
