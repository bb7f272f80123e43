"""`mmssl embed` of folders and tables, and searching in them; wrong options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mmssl
from mmssl.data.shards.index import ShardIndex
from tests.pipelines.conftest import World


@pytest.fixture(scope="module")
def photos(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with captions beside them."""
    folder = tmp_path_factory.mktemp("photos")
    for number, raw in zip(range(6), ShardIndex.open([str(world.shards / "test")]), strict=False):
        for extension in ("png", "jpg"):
            if extension in raw.fields:
                (folder / f"photo {number}.{extension}").write_bytes(raw.fields[extension])
        (folder / f"photo {number}.txt").write_bytes(raw.fields["txt"])
    return folder


@pytest.fixture(scope="module")
def embedded(world: World, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded")
    assert world.mmssl("embed", world.run, "--files", photos, "--out", out, "--batch-size", 4) == 0
    return out


def test_a_folder_is_embedded_as_the_model_encodes_its_files(world: World, photos: Path, embedded: Path) -> None:
    files = sorted(path for path in photos.iterdir() if path.suffix != ".txt")
    wanted = mmssl.load(world.run).encode(image=files)["image"].numpy()
    np.testing.assert_allclose(np.load(embedded / "image.npy", mmap_mode="r"), wanted, atol=2e-6)
    assert (embedded / "keys.txt").read_text().splitlines() == [path.name for path in files]
    assert json.loads((embedded / "manifest.json").read_text())["files"]["path"] == str(photos)


def test_the_same_command_again_says_that_it_is_done(
    world: World, photos: Path, embedded: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (embedded / "image.npy").stat().st_ino
    command = ("embed", world.run, "--files", photos, "--out", embedded, "--batch-size", 3)
    assert world.mmssl(*command) == 0
    assert "holds these embeddings already" in caplog.text + capfd.readouterr().err
    assert (embedded / "image.npy").stat().st_ino == before
    assert world.mmssl(*command, "--overwrite") == 0
    assert (embedded / "image.npy").stat().st_ino != before


def test_the_table_of_samples_leads_to_files_and_rows(photos: Path, embedded: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    rows = parquet.read_table(embedded / "samples.parquet").to_pylist()
    assert [row["sample"] for row in rows] == list(range(6))
    owners = np.load(embedded / "text.samples.npy")
    for row in rows:
        assert Path(row["place"]).parent == photos
        assert (
            owners[row["text_row"] : row["text_row"] + row["text_rows"]].tolist() == [row["sample"]] * row["text_rows"]
        )
        assert (row["image_row"], row["image_rows"]) == (row["sample"], 1)


def test_a_photo_of_the_folder_is_found_and_shown(
    world: World, photos: Path, embedded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photo = next(path for path in photos.iterdir() if path.stem == "photo 3" and path.suffix != ".txt")
    page = tmp_path / "found.html"
    assert world.mmssl("search", embedded, photo, "--top", 2, "--html", page) == 0
    assert f"1  1.0000  {photo.name}" in capfd.readouterr().out
    assert page.read_text().count("data:image/") == 3


def test_a_table_is_embedded(world: World, photos: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in photos.iterdir() if path.suffix != ".txt")
    lines = [f"{name};a {'good' if number % 2 else 'bad'} one" for number, name in enumerate(names)]
    (tmp_path / "pairs.csv").write_text("\n".join(["photo;title", *lines]))
    arguments = ["--files", tmp_path / "pairs.csv", "--root", photos, "--column", "image=photo"]
    arguments += ["--column", "caption=title", "--where", "title == 'a good one'", "--half", "--out", tmp_path / "out"]
    assert world.mmssl("embed", world.run, *arguments) == 0
    rows = np.load(tmp_path / "out/text.npy")
    assert (rows.dtype, len(rows)) == (np.float16, 3)
    assert (rows == rows[0]).all()


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        ([], 2, "got neither of --shards and --files"),
        (["--shards", "a", "--files", "b"], 2, "got both of --shards and --files"),
        (["--shards", "a", "--column", "image=x"], 2, "--column: no effect on shards"),
        (["--files", "nowhere"], 3, "there is no nowhere"),
    ],
)
def test_what_cannot_be_embedded_is_told(
    world: World, capfd: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], code: int, wanted: str
) -> None:
    assert world.mmssl("embed", world.run, *arguments, "--out", tmp_path / "out") == code
    assert wanted in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_files_that_have_changed_since_are_told(
    world: World, photos: Path, embedded: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (photos / "photo 9.txt").write_text("new")
    photo = next(path for path in photos.iterdir() if path.stem == "photo 3" and path.suffix != ".txt")
    new = photos / f"photo 9{photo.suffix}"
    new.write_bytes(photo.read_bytes())
    try:
        assert world.mmssl("search", embedded, "a cat", "--html", tmp_path / "found.html") == 3
    finally:
        new.unlink()
        (photos / "photo 9.txt").unlink()
    assert "the samples have changed since they were embedded" in " ".join(capfd.readouterr().err.split())


def test_files_that_cannot_be_decoded_are_counted_up_to_a_share(
    world: World, photos: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = "".join(f"{photo}\n" for photo in [next(photos.glob("photo 1.[jp]*"))] * 20 + ["gone.png"] * 490)
    (tmp_path / "table.csv").write_text(f"image\n{rows}")
    given = ("embed", world.run, "--files", tmp_path / "table.csv", "--root", photos, "--out", tmp_path / "out")
    assert world.mmssl(*given) == 3
    assert "wanted at most a share of 0.01" in " ".join(capfd.readouterr().err.split())
    assert world.mmssl(*given, "--max-failures", 0.97) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["skipped"], manifest["rows"]) == (490, {"image": 20, "text": 0})
