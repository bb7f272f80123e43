"""Packing: each kind of source becomes the shards it should, deterministically, and goes on where it was interrupted."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from mmssl.core.errors import DataError
from mmssl.curation.pack import Columns, PackConfig, pack
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.writer import Manifest, read_manifest, sha256_of
from tests.data.modalities.test_audio import encode

CLASSES = ("cat", "dog", "sea_lion")


def picture(number: int, size: tuple[int, int] = (16, 12), kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def class_folder(root: Path, count: int = 4) -> Path:
    for label, name in enumerate(CLASSES):
        deep = root / name / "deeper"
        deep.mkdir(parents=True)
        for number in range(count):
            (deep / f"{number}.jpg").write_bytes(picture(10 * label + number))
        (root / name / "Thumbs.db").write_bytes(b"not a picture")
    return root


def table(root: Path, rows: list[tuple[str, str]], name: str = "captions.csv", separator: str = ",") -> Path:
    (root / "img").mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        (root / "img" / f"{number}.jpg").write_bytes(picture(number))
    lines = [separator.join(("path", "caption")), *(separator.join(row) for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n", "utf-8")
    return root / name


def samples(manifest: Manifest) -> dict[str, Mapping[str, bytes]]:
    found = {sample.key: sample.fields for sample in ShardIndex.open(list(manifest.paths))}
    assert len(found) == manifest.samples
    return found


def test_folder_of_classes(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "pets")
    manifest = pack(source, tmp_path / "out")
    found = samples(manifest)
    assert manifest.samples == 12
    assert sorted(found) == [f"{number:02d}" for number in range(12)]
    assert (tmp_path / "out" / "classnames.txt").read_text() == "cat\ndog\nsea lion\n"
    originals = {picture(10 * label + number): label for label in range(3) for number in range(4)}
    for fields in found.values():
        label = originals[fields["jpg"]]  # byte for byte
        assert int(fields["cls"]) == label
        assert fields["txt"].decode() == f"a photo of a {CLASSES[label].replace('_', ' ')}"
    labels = [int(found[key]["cls"]) for key in sorted(found)]
    assert labels != sorted(labels)  # mixed


def test_order_of_the_source_without_shuffle(tmp_path: Path) -> None:
    manifest = pack(class_folder(tmp_path / "pets"), tmp_path / "out", PackConfig(shuffle=None, templates=()))
    found = samples(manifest)
    assert [int(found[key]["cls"]) for key in sorted(found)] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(set(fields) == {"jpg", "cls"} for fields in found.values())


def test_templates_are_spread_over_samples(tmp_path: Path) -> None:
    config = PackConfig(templates=("a {}", "one {} here"), class_names=("x", "y", "z"))
    texts = [
        fields["txt"].decode()
        for fields in samples(pack(class_folder(tmp_path / "pets", 8), tmp_path / "out", config)).values()
    ]
    assert set(texts) == {f"a {name}" for name in "xyz"} | {f"one {name} here" for name in "xyz"}


@pytest.mark.parametrize(("name", "separator"), [("captions.csv", ","), ("captions.tsv", "\t")])
def test_tables(tmp_path: Path, name: str, separator: str) -> None:
    rows = [("img/0.jpg", "a  café \u2028 here"), ("img/1.jpg", "two")]
    manifest = pack(table(tmp_path, rows, name, separator), tmp_path / "out", PackConfig(shuffle=None))
    found = samples(manifest)
    assert [found[key]["txt"].decode() for key in ("0", "1")] == ["a café here", "two"]
    assert [found[key]["jpg"] for key in ("0", "1")] == [picture(0), picture(1)]
    assert not (tmp_path / "out" / "classnames.txt").exists()


def test_named_columns_labels_keys_and_several_captions(tmp_path: Path) -> None:
    sound = encode(np.zeros((8, 1), np.float32), "WAV")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.PNG").write_bytes(picture(1, kind="PNG"))
    (tmp_path / "a" / "x.wav").write_bytes(sound)
    (tmp_path / "t.csv").write_text('pic,snd,one,two,kind,name\na/x.PNG,a/x.wav,"first, said","",dog,../etc/pass.wd\n')
    columns = Columns(files=("pic", "snd"), captions=("one", "two"), label="kind", key="name")
    manifest = pack(tmp_path / "t.csv", tmp_path / "out", PackConfig(columns=columns))
    fields = {"png": picture(1, kind="PNG"), "wav": sound, "txt": b"first, said", "cls": b"0"}
    assert samples(manifest) == {"etc_pass_wd": fields}
    assert (tmp_path / "out" / "classnames.txt").read_text() == "dog\n"


def test_paths_may_start_from_another_folder(tmp_path: Path) -> None:
    path = table(tmp_path / "media", [("0.jpg", "one")])
    assert pack(path, tmp_path / "out", root=tmp_path / "media" / "img").samples == 1


def test_a_table_of_captions_and_nothing_else_is_texts(tmp_path: Path) -> None:
    (tmp_path / "sentences.csv").write_text("caption\none\n\ntwo\n")
    manifest = pack(tmp_path / "sentences.csv", tmp_path / "out", PackConfig(on_error="skip"))
    index = ShardIndex.open([str(tmp_path / "out")])
    assert sorted(index.read(number).fields["txt"] for number in range(len(index))) == [b"one", b"two"]
    assert manifest.samples == 2
    with pytest.raises(DataError, match="has no column of files: leave out --keys files"):
        pack(tmp_path / "sentences.csv", tmp_path / "keys", PackConfig(keys="files"))
    (tmp_path / "more.csv").write_text("photo,caption\n0.jpg,one\n")
    with pytest.raises(DataError, match="name the one with paths or bytes of media"):
        pack(tmp_path / "more.csv", tmp_path / "more")


def test_arrays_of_jpegs(tmp_path: Path) -> None:
    files = [picture(number) for number in range(6)]
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2], np.uint8)
    np.savez(tmp_path / "set.npz", jpeg=jpeg, offsets=offsets, labels=labels, classes=np.array(CLASSES))
    manifest = pack(tmp_path / "set.npz", tmp_path / "out")
    by_bytes = {fields["jpg"]: int(fields["cls"]) for fields in samples(manifest).values()}
    assert by_bytes == dict(zip(files, labels.tolist(), strict=True))


@pytest.mark.parametrize("shape", [(5, 9, 7, 3), (5, 9, 7)])
def test_arrays_of_pixels_lose_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(5))
    found = samples(pack(tmp_path / "set.npz", tmp_path / "out", PackConfig(shuffle=None)))
    for number in range(5):
        pixels = np.asarray(Image.open(io.BytesIO(found[str(number)]["png"])))
        assert (pixels == images[number].reshape(9, 7, -1)).all()
        assert set(found[str(number)]) == {"png", "cls"}  # labels without names make no captions


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(DataError, match=r"set\.npz cannot be read as \.npz without pickled objects"):
        pack(tmp_path / "set.npz", tmp_path / "out")


@pytest.mark.parametrize(
    "arrays",
    [
        {"pixels": np.zeros((2, 2))},
        {"images": np.zeros((2, 4, 4, 3))},
        {"images": np.zeros((2, 4, 4, 3), np.uint8), "labels": np.arange(3)},
        {"jpeg": np.zeros(9, np.uint8), "offsets": np.array([0, 5, 3])},
        {"jpeg": np.zeros(9, np.uint8), "offsets": np.array([0, 5, 30])},
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=r"set\.npz holds .* wanted"):
        pack(tmp_path / "set.npz", tmp_path / "out")


def test_shards_are_cut_by_samples_or_by_bytes(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "pets")
    by_count = pack(source, tmp_path / "a", PackConfig(shard_samples=5))
    assert [shard.samples for shard in by_count.shards] == [5, 5, 2]
    assert [(shard.start, shard.stop) for shard in by_count.shards] == [(0, 5), (5, 10), (10, 12)]
    size = len(picture(0)) + 3 * 512
    by_bytes = pack(source, tmp_path / "b", PackConfig(shard_bytes=3 * size))
    assert len(by_bytes.shards) > 2
    for path, shard in zip(by_bytes.paths, by_bytes.shards, strict=True):
        assert (path.stat().st_size, sha256_of(path)) == (shard.bytes, shard.sha256)
        with tarfile.open(path) as tar:
            assert sum(512 + -(-member.size // 512) * 512 for member in tar) < 3 * size + 4096


def test_workers_change_nothing(tmp_path: Path) -> None:
    source = class_folder(tmp_path / "pets", 9)
    config = PackConfig(shard_samples=7, max_side=8)
    one, three = (pack(source, tmp_path / str(n), config, workers=n) for n in (1, 3))
    assert one.shards == three.shards
    other = pack(source, tmp_path / "other", PackConfig(shard_samples=7, max_side=8, shuffle=1))
    assert other.shards != one.shards


def test_re_encodes_only_what_is_too_large(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "thing"
    folder.mkdir(parents=True)
    small = picture(0, (10, 8))
    (folder / "a.jpg").write_bytes(small)
    (folder / "b.jpg").write_bytes(picture(1, (64, 32)))
    (folder / "c.png").write_bytes(picture(2, (32, 64), "PNG"))
    (folder / "d.bmp").write_bytes(picture(3, (6, 6), "BMP"))
    found = samples(pack(tmp_path / "set", tmp_path / "out", PackConfig(max_side=16, shuffle=None)))
    assert found["0"]["jpg"] == small
    sizes = {key: Image.open(io.BytesIO(fields.get("jpg") or fields["png"])) for key, fields in found.items()}
    assert {key: (image.format, image.size) for key, image in sizes.items()} == {
        "0": ("JPEG", (10, 8)),
        "1": ("JPEG", (16, 8)),
        "2": ("PNG", (8, 16)),
        "3": ("JPEG", (6, 6)),
    }


def test_the_usual_caption_goes_by_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "set" / "dog").mkdir(parents=True)
    (tmp_path / "set" / "dog" / "a.bmp").write_bytes(picture(0, kind="BMP"))
    (tmp_path / "set" / "dog" / "b.jpg").write_bytes(picture(1))
    found = samples(pack(tmp_path / "set", tmp_path / "out", PackConfig(max_side=64)))
    assert [fields["txt"] for fields in found.values()] == [b"a photo of a dog"] * 2


def test_re_encodes_sixteen_bits_to_what_decoding_sees(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "thing"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((30, 20), 100 * 256, np.uint16)).save(folder / "a.png")
    found = samples(pack(tmp_path / "set", tmp_path / "out", PackConfig(max_side=15)))
    assert np.asarray(Image.open(io.BytesIO(found["0"]["png"])).convert("RGB")).tolist() == [[[100] * 3] * 10] * 15


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    source, out = class_folder(tmp_path / "pets"), tmp_path / "out"
    config = PackConfig(shard_samples=4)
    whole = pack(source, tmp_path / "whole", config)

    def stop(done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, out, config, progress=stop)
    unfinished = read_manifest(out)
    assert unfinished is not None
    assert not unfinished.complete
    assert unfinished.shards == whole.shards[:2]
    times = [path.stat().st_mtime_ns for path in unfinished.paths]
    resumed = pack(source, out, config)
    assert resumed.shards == whole.shards
    assert [path.stat().st_mtime_ns for path in resumed.paths[:2]] == times
    # A damaged shard in the middle is made again, alone.
    resumed.paths[0].write_bytes(b"damaged")
    again = pack(source, out, config)
    assert again.shards == whole.shards
    assert sha256_of(again.paths[0]) == whole.shards[0].sha256
    assert again.paths[1].stat().st_mtime_ns == times[1]
    assert json.loads((out / "manifest.json").read_text())["samples"] == 12


def test_another_packing_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source, out = class_folder(tmp_path / "pets"), tmp_path / "out"
    pack(source, out, PackConfig(shard_samples=2))
    with pytest.raises(DataError, match=r"differs in shard_samples"):
        pack(source, out, PackConfig(shard_samples=6))
    assert len(list(out.glob("*.tar"))) == 6
    manifest = pack(source, out, PackConfig(shard_samples=6), overwrite=True)
    assert sorted(out.glob("*.tar")) == manifest.paths
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine.tar").write_bytes(b"x")
    with pytest.raises(DataError, match="not in its manifest"):
        pack(source, tmp_path / "foreign")
    assert (tmp_path / "foreign" / "mine.tar").exists()


def test_config_is_strict() -> None:
    with pytest.raises(ValidationError, match="shard_sample"):
        PackConfig(shard_sample=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="quality"):
        PackConfig(quality=101)


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        pack(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "x.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot pack .*x\.xlsx: wanted a folder"):
        pack(tmp_path / "x.xlsx", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders with media files"):
        pack(tmp_path / "empty", tmp_path / "out")


def test_pictures_that_are_made_smaller_are_packed_as_they_are_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a photograph of a phone, held upright
    (tmp_path / "in" / "cat").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "cat" / "0.jpg", exif=exif)
    config = PackConfig(max_side=20, templates=())
    ((_, fields),) = samples(pack(tmp_path / "in", tmp_path / "out", config)).items()
    with Image.open(io.BytesIO(fields["jpg"])) as image:
        assert image.size == (15, 20)
        assert image.getexif().get(0x0112, 1) == 1


def test_the_manifest_says_what_a_text_file_is(tmp_path: Path) -> None:
    rows = [("img/0.jpg", "a cat"), ("img/1.jpg", "a dog")]
    one = pack(table(tmp_path, rows, "one.csv"), tmp_path / "one")
    (tmp_path / "t.csv").write_text("image,a,b\nimg/0.jpg,a cat,\nimg/1.jpg,a dog,two dogs\n")
    columns = Columns(image="image", captions=("a", "b"))
    several = pack(tmp_path / "t.csv", tmp_path / "several", PackConfig(columns=columns, shard_samples=1, shuffle=None))
    none = pack(class_folder(tmp_path / "pets"), tmp_path / "none", PackConfig(templates=()))
    assert [manifest.formats for manifest in (one, several, none)] == [{"txt": "whole"}, {"txt": "lines"}, {}]
    saved = read_manifest(several.folder)
    assert saved is not None
    assert saved.formats == {"txt": "lines"}


def test_a_resumed_packing_knows_the_texts_of_earlier_shards(tmp_path: Path) -> None:
    table(tmp_path, [("img/0.jpg", "a cat"), ("img/1.jpg", "a dog")])
    (tmp_path / "t.csv").write_text("image,a,b\nimg/0.jpg,a cat,two cats\nimg/1.jpg,a dog,\n")
    config = PackConfig(columns=Columns(image="image", captions=("a", "b")), shard_samples=1, shuffle=None)
    pack(tmp_path / "t.csv", tmp_path / "out", config)
    again = pack(tmp_path / "t.csv", tmp_path / "out", config)
    assert again.formats == {"txt": "lines"}
