"""The rules by which picture files become uint8 RGB pixels. Pillow is the reference, and a PNG writer for 16-bit colours."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from mmssl.core.errors import DataError
from mmssl.data.modalities.image import ImageConfig, ImageModality
from mmssl.data.modalities.orientation import exif_orientation
from mmssl.data.modality import DecodeError
from tests.data.make import encode, noise

PICTURE = Image.fromarray(noise(0, 50, 70))
RNG = np.random.default_rng(0)
PNG_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> colour type of a PNG: grey, grey with alpha, RGB, RGBA."""


def build(**settings: Any) -> ImageModality:
    return ImageConfig(size=32, **settings).build("image")


def png(values: np.ndarray) -> bytes:
    """A PNG of values [H, W, C] as they are: uint8, or uint16, which Pillow writes in grey alone."""
    height, width, channels = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, PNG_TYPES[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(f">u{values.itemsize}").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(reason: str, sentence: str, data: bytes, **settings: Any) -> None:
    with pytest.raises(DecodeError, match=sentence) as caught:
        build(**settings).decode(data, "png")
    assert caught.value.reason == reason


# Orientation ---------------------------------------------------------------------------------------------------------


def test_pictures_are_turned_as_viewers_show_them() -> None:
    """All eight orientations, in every format, as files and as PIL pictures."""
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        for kind, extension in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("AVIF", "avif")):
            if kind == "AVIF" and not features.check("avif"):
                continue
            data = encode(PICTURE, kind, exif=exif)
            with Image.open(io.BytesIO(data)) as opened:
                expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)
                assert np.abs(build().decode(data, extension).astype(int) - expected).max() <= 3
                assert np.abs(build().from_value(opened).astype(int) - expected).max() <= 3
            assert build(orientation="stored").decode(data, extension).shape == (50, 70, 3)
            assert build().inspect(data, extension).flags == (() if number == 1 else ("turned by EXIF",))


BROKEN = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"
"""A directory with the orientation 99."""


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0" + BROKEN])
def test_damaged_exif_loses_no_picture(exif: bytes) -> None:
    data = encode(PICTURE)
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    assert build().decode(data[:2] + segment + data[2:], "jpg").shape == (50, 70, 3)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


@pytest.mark.parametrize(
    "before",
    [
        segment(0xED, b"thumbnail \xff\xda\x00\x08 of its own"),  # the marker of a scan in another segment
        b"\xff" + segment(0xFE, b"comment"),  # a fill byte
        segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
    ],
    ids=["thumbnail", "fill", "segment"],
)
def test_an_orientation_is_found_behind_other_segments(before: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PICTURE)
    data = data[:2] + before + segment(0xE1, exif.tobytes()) + data[2:]
    assert exif_orientation(data) == 6


def test_pixels_are_not_searched_for_an_orientation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmssl.data.modalities.orientation.Image", None)
    data = encode(PICTURE)
    scan = data.index(b"\xff\xda") + 20
    assert exif_orientation(data[:scan] + b"Exif\0\0" + data[scan:]) == 1


# Depth ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_scaled_by_their_full_range(channels: int) -> None:
    """0, 257, 514 ... are the grey levels 0, 1, 2 ...; nearest in between. Pillow clips grey, and cuts colours."""
    values = RNG.integers(0, 65536, (9, 11, channels), dtype=np.uint16)
    values[0, 0], values[0, 1], values[0, 2] = 0, 65535, 129  # 129 / 257 is nearer to 1
    if channels in (2, 4):
        values[..., -1] = 65535
    found = build().inspect(png(values), "png")
    assert found.flags == ("of more than 8 bits",)
    pixels = build().decode(png(values), "png")
    colours = values[..., :1] if channels < 3 else values[..., :3]
    assert pixels.shape == (9, 11, 3)
    assert np.array_equal(pixels, np.broadcast_to((colours.astype(int) + 128) // 257, (9, 11, 3)))
    assert pixels[0, :3, 0].tolist() == [0, 255, 1]


@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_in_sixteen_do_not_become_black(channels: int) -> None:
    """A camera's 12 bits: refused with a sentence, or shown from its least to its largest value."""
    values = RNG.integers(1000, 3800, (9, 11, channels), dtype=np.uint16)
    values[0, 0], values[0, 1], values[0, 2] = 1000, 3805, 2402
    sentence = r"got a picture of uint16 values from 1000 to 3805, which is \(nearly\) black .*; `depth: window` shows"
    refused("depth", sentence, png(values))
    pixels = build(depth="window").decode(png(values), "png")
    assert np.array_equal(pixels, np.broadcast_to((values.astype(int) - 1000 + 5) // 11, (9, 11, 3)))
    assert pixels[0, :2, 0].tolist() == [0, 255]
    assert len(np.unique(pixels)) > 60
    refused("depth", "wanted 8 bits", png(values), depth="refuse")


def test_the_bits_count_as_used_from_the_fifteenth() -> None:
    values = np.zeros((2, 2, 1), np.uint16)
    assert (build().decode(png(values), "png") == 0).all()  # black is black on any scale
    assert (build(depth="window").decode(png(values), "png") == 0).all()
    values[0, 0] = 2**14 - 1
    refused("depth", "from 0 to 16383", png(values))
    values[0, 0] = 2**14
    assert build().decode(png(values), "png").max() == 64


def test_a_damaged_picture_of_16_bits_is_refused() -> None:
    data = bytearray(png(RNG.integers(0, 65536, (20, 20, 3), dtype=np.uint16)))
    data[200] ^= 255
    refused("undecodable", "bytes", bytes(data))
    refused("undecodable", "bytes", bytes(data[:200]))


def test_pil_pictures_of_more_bits_follow_the_same_rule() -> None:
    values = RNG.integers(0, 65536, (9, 11)).astype(np.uint16)
    values[0, 0] = 0
    wanted = np.repeat(((values.astype(int) + 128) // 257)[..., None], 3, axis=2)
    big_endian = Image.frombytes("I;16B", (11, 9), values.astype(">u2").tobytes())
    for picture in (Image.fromarray(values), Image.fromarray(values.astype(np.int32)), big_endian):
        assert np.array_equal(build().from_value(picture), wanted)
    floats = Image.fromarray((values / 65535).astype(np.float32))
    assert floats.mode == "F"
    assert np.array_equal(build().from_value(floats), wanted)
    for array, sentence in (
        (
            values.astype(np.int32) - 7,
            r"got a picture of int32 values from -7 to \d+, wanted 0 to 65535; `depth: window`",
        ),
        (values.astype(np.float32), r"got a picture of float32 values from \d+ to \d+, wanted 0 to 1; `depth: window`"),
        (np.where(values < 99, np.nan, 0.5).astype(np.float32), "not_finite: got a picture of float32 values from nan"),
    ):
        with pytest.raises(DecodeError, match=sentence):
            build().from_value(Image.fromarray(array))
    window = build(depth="window").from_value(Image.fromarray(np.array([[-3.0, 0.0], [1.0, 7.2]], np.float32)))
    assert window[..., 0].tolist() == [[0, 75], [100, 255]]


# Alpha and bands -----------------------------------------------------------------------------------------------------


def with_mask() -> np.ndarray:
    """RGBA [50, 70, 4]: a cut-out, whose soft edge has 62 levels of alpha in 32 of 70 columns."""
    edge = 8 * (np.arange(70) - 30) + 4 * (np.arange(50)[:, None] % 2)
    return np.dstack([noise(1, 50, 70), np.clip(edge, 0, 255).astype(np.uint8)])


@pytest.mark.parametrize("alpha", ["mask", "drop"])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_alpha_is_dropped_as_in_open_clip(form: str, alpha: str) -> None:
    picture = Image.fromarray(with_mask())
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    for data in (encode(picture, form, **options), encode(picture.convert("LA"), "PNG")):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(build(alpha=alpha).decode(data, "png"), expected)
        assert build(alpha=alpha).inspect(data, "png").flags == ("with alpha",)


def test_alpha_is_blended_with_white() -> None:
    values = with_mask()
    white = Image.new("RGBA", (70, 50), "white")
    expected = np.asarray(Image.alpha_composite(white, Image.fromarray(values)).convert("RGB"))
    pixels = build(alpha="white").decode(png(values), "png")
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert (pixels[:, :30] == 255).all()
    assert np.array_equal(pixels[:, 62:], values[:, 62:, :3])
    deep = build(alpha="white").decode(png(values.astype(np.uint16) * 257), "png")
    assert np.array_equal(deep, pixels)
    key = encode(
        Image.fromarray(values[..., 0].astype(np.uint16) * 257), "PNG", transparency=int(values[25, 40, 0]) * 257
    )
    assert (build(alpha="white").decode(key, "png")[values[..., 0] == values[25, 40, 0]] == 255).all()


def test_alpha_is_refused_where_it_is_not_opaque() -> None:
    refused("alpha", "got a picture with alpha, wanted an opaque one", png(with_mask()), alpha="refuse")
    opaque = np.dstack([noise(1, 50, 70), np.full((50, 70), 255, np.uint8)])
    for data in (png(opaque), encode(PICTURE.quantize(8), "PNG", transparency=200)):
        assert build(alpha="refuse").inspect(data, "png").flags == ()


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("deep", [False, True])
def test_a_fourth_band_is_not_taken_for_alpha(channels: int, deep: bool) -> None:
    """Near infrared has half transparent values nearly everywhere; masks have them at edges, veils at few levels."""
    values = np.dstack([noise(1, 50, 70)[..., : channels - 1], noise(2, 50, 70)[..., 0]])
    data = png(values.astype(np.uint16) * 257 if deep else values)
    refused("bands", "got a fourth channel that is no mask: over half .* store the picture as an array", data)
    dropped = build(alpha="drop").decode(data, "png")
    assert np.array_equal(dropped, np.broadcast_to(values[..., : channels - 1], (50, 70, 3)))
    veil = values.copy()
    veil[..., -1] = 128
    assert build().inspect(png(veil), "png").flags == ("with alpha",)


def tiff(array: np.ndarray, mode: str, **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(encode(Image.fromarray(array, mode), "TIFF", **options)))


def test_bands_of_a_tiff_that_pillow_would_drop() -> None:
    bands = np.dstack([noise(1, 9, 11), noise(2, 9, 11)[..., 0]])
    with pytest.raises(DecodeError, match="bands: got a TIFF of 4 bands, wanted 3 and at most alpha"):
        build().from_value(tiff(bands, "RGBX"))
    opaque = np.dstack([bands[..., :3], np.full((9, 11), 255, np.uint8)])
    assert np.array_equal(build().from_value(tiff(opaque, "RGBA")), bands[..., :3])
    assert np.array_equal(build().from_value(tiff(bands[..., 0], "L")), np.repeat(bands[..., :1], 3, axis=2))
    inks = tiff(bands, "CMYK")
    assert np.array_equal(build().from_value(inks), np.asarray(inks.convert("RGB")))


def test_bits_that_pillow_would_drop() -> None:
    colours = tiff(noise(1, 9, 11), "RGB")
    colours.tag_v2[258] = (16, 16, 16)  # what Pillow opens as 8 bits
    with pytest.raises(DecodeError, match="depth: got 16-bit colours, of which Pillow keeps 8 bits"):
        build().from_value(colours)
    for channels in (2, 3, 4):
        opened = Image.open(io.BytesIO(png(np.full((9, 11, channels), 4000, np.uint16))))
        with pytest.raises(DecodeError, match=r"got 16-bit colours, .* or the path of a 16-bit PNG"):
            build().from_value(opened)


# Animations, and formats of other decoders -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_first_frame_of_an_animation(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], duration=100, **options)
    assert np.abs(build().decode(data, form.lower()).astype(int) - [255, 0, 0]).max() <= 3
    assert build().inspect(data, form.lower()).flags == ("animated: first frame",)
    assert build().inspect(encode(frames[0], form), form.lower()).flags == ()


def test_a_gif_may_be_damaged_behind_its_first_frame() -> None:
    frames = [Image.fromarray(noise(seed, 40, 40)).quantize(16) for seed in (1, 2)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(build().decode(data[:-200], "gif"), build().decode(data, "gif"))
    refused("undecodable", "bytes", data[: len(data) // 4])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_avif_is_decoded_by_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(PICTURE, "AVIF")
    assert np.array_equal(build().decode(data, "avif"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    refused("undecodable", "bytes", data[:300])
    monkeypatch.setattr("mmssl.data.modalities.pictures.features.check", lambda _: False)
    with pytest.raises(DataError, match="got an AVIF picture, and this Pillow decodes none: install"):
        build().decode(data, "avif")


def test_heic_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    for brand in (b"heic", b"mif1"):
        with pytest.raises(
            DataError, match=r"got a HEIC picture, which needs another package: pip install 'mmssl\[heic\]'"
        ):
            build().decode(b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1heic" + bytes(99), "heic")


def test_heic() -> None:
    """The `heic` extra. Its decoder turns pictures itself."""
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PICTURE, "HEIF", exif=exif.tobytes(), quality=95)
    pixels = build().decode(data, "heic")
    upright = np.asarray(PICTURE).transpose(1, 0, 2)[:, ::-1].astype(int)
    assert pixels.shape == (70, 50, 3)
    assert np.abs(pixels - upright).mean() < 4
    refused("undecodable", "bytes", data[:400])
    refused("too_large", "wanted at most 99", data, max_pixels=99)


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inks", [False, True])
def test_damaged_jpegs_are_shown_where_the_recipe_says_so(inks: bool) -> None:
    picture = Image.fromarray(noise(1, 160, 200)).convert("CMYK" if inks else "RGB")
    whole = encode(picture, quality=90)
    cut = whole[: len(whole) * 6 // 10]
    refused("undecodable", "JPEG of .*; `on_damage: show` decodes what browsers show", cut)
    lenient = build(on_damage="show")
    pixels, expected = lenient.decode(cut, "jpg"), build().decode(whole, "jpg")
    assert pixels.shape == expected.shape
    assert np.array_equal(pixels[:60], expected[:60])
    assert not np.array_equal(pixels[-40:], expected[-40:])
    assert lenient.inspect(cut, "jpg").flags == ("damaged: decoded as far as it goes",)
    assert lenient.inspect(whole, "jpg").flags == ()
    assert np.array_equal(lenient.decode(whole, "jpg"), expected)
    refused("undecodable", "JPEG of 3 bytes", whole[:3], on_damage="show")
