"""Pictures of all formats: packed as they are, or made smaller by the same rules that decode them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmssl.core.errors import DataError
from mmssl.curation.check import check_shards
from mmssl.curation.pack import PackConfig, pack
from mmssl.curation.stats import measure_shards
from mmssl.data.shards.index import ShardIndex
from tests.data.make import encode, noise

SHARED = {"shuffle": None, "templates": ()}


def packed(tmp_path: Path, files: dict[str, bytes], **settings: object) -> list[dict[str, bytes]]:
    (tmp_path / "in" / "thing").mkdir(parents=True)
    for name, data in files.items():
        (tmp_path / "in" / "thing" / name).write_bytes(data)
    manifest = pack(tmp_path / "in", tmp_path / "out", PackConfig.model_validate({**SHARED, **settings}))
    found = sorted(ShardIndex.open(list(manifest.paths)), key=lambda sample: sample.key)
    return [{name: data for name, data in sample.fields.items() if name != "cls"} for sample in found]


def grey(*levels: int) -> bytes:
    """A 16-bit PNG of 30 x 20 pixels, of these levels in equal stripes."""
    return encode(Image.fromarray(np.repeat(np.array(levels, np.uint16), 600 // len(levels)).reshape(30, 20)), "PNG")


ANIMATION = [Image.fromarray(noise(seed, 30, 40)).quantize(16) for seed in (1, 2)]
FILES = {
    "0.gif": encode(ANIMATION[0], "GIF", save_all=True, append_images=ANIMATION[1:]),
    "1.avif": encode(noise(3, 30, 40), "AVIF"),
    "2.heic": b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiafheix",
    "3.jpg": encode(noise(4, 30, 40), "WEBP"),
}


def test_all_formats_are_packed_as_they_are(tmp_path: Path) -> None:
    found = packed(tmp_path, FILES)
    assert found == [
        {"gif": FILES["0.gif"]},
        {"avif": FILES["1.avif"]},
        {"heic": FILES["2.heic"]},
        {"jpg": FILES["3.jpg"]},
    ]


def test_formats_are_known_by_their_bytes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"undecodable: the file begins with .*, like a gif file, wanted a wav file"):
        packed(tmp_path, {"0.wav": FILES["0.gif"]})


def test_what_is_made_smaller_follows_the_rules_of_decoding(tmp_path: Path) -> None:
    inks = encode(Image.fromarray(noise(5, 30, 40)).convert("CMYK"), quality=95)
    files = {name: FILES[name] for name in ("0.gif", "1.avif")} | {"2.png": grey(0, 257 * 200), "3.jpg": inks}
    found = packed(tmp_path, files, max_side=20)
    pictures = [Image.open(io.BytesIO(next(iter(fields.values())))) for fields in found]
    assert [(picture.format, picture.size) for picture in pictures] == [
        ("JPEG", (20, 15)), ("JPEG", (20, 15)), ("PNG", (13, 20)), ("JPEG", (20, 15)),
    ]  # fmt: skip
    first = ANIMATION[0].convert("RGB").resize((20, 15), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(pictures[0]).astype(int) - np.asarray(first)).mean() < 4
    assert np.asarray(pictures[2])[[0, -1], 0, 0].tolist() == [0, 200]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("0.png", grey(0, 4000), r"depth: got a picture of uint16 values from 0 to 4000, .*\(--max-side takes the defaults"),
        ("0.png", encode(np.dstack([noise(1, 50, 70), noise(2, 50, 70)[..., 0]]), "PNG"), "bands: got a fourth channel"),
        ("0.tif", encode(Image.fromarray(np.zeros((30, 40, 4), np.uint8), "RGBX"), "TIFF"), "bands: got a TIFF of 4 bands"),
        ("0.jpg", encode(noise(1, 90, 90))[:1500], "undecodable: JPEG of 1500 bytes"),
        ("0.bmp", b"%!PS-Adobe-3.0 EPSF-3.0", "undecodable: got 23 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_smaller_is_named(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        packed(tmp_path, {name: data}, max_side=20)


def test_a_decoder_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    packed(tmp_path, {"0.heic": FILES["2.heic"]})
    (fault,) = check_shards([tmp_path / "out"]).faults
    assert (fault.key, fault.field) == ("0", "heic")
    assert "pip install 'mmssl[heic]'" in fault.detail


def test_what_the_rules_changed_is_counted(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = np.dstack([noise(1, 9, 9), np.tile(np.arange(9) // 5 * 255, (9, 1))]).astype(np.uint8)
    files = {
        "0.gif": FILES["0.gif"],
        "1.png": grey(0, 60000),
        "2.png": encode(mask, "PNG"),
        "3.jpg": encode(noise(1), exif=exif),
        "4.jpg": encode(noise(2)),
    }
    packed(tmp_path, files)
    flags = {"animated: first frame": 1, "of more than 8 bits": 1, "with alpha": 1, "turned by EXIF": 1}
    assert measure_shards([tmp_path / "out"]).modalities["image"].flags == flags
    report = check_shards([tmp_path / "out"])
    assert report.ok
    assert report.modalities["image"].flags == flags
    assert [line for line in report.warnings if line.startswith("1 images")] == [
        "1 images are animated: their first frame is used",
        "1 images have alpha: `modalities.image.alpha` says what becomes of it; dropped, colours behind it show",
        "1 images have more than 8 bits, and are converted as `modalities.image.depth` says",
    ]
