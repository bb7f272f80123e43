"""Arrays: files are read as they are stored, by their header first; axes have names; crops, flips and turns are exact."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError

from mmssl.curation.figures import Tally
from mmssl.data.modalities.array import ArrayConfig, ArrayModality, arranged
from mmssl.data.modality import DecodeError
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.mix import Mixup
from mmssl.data.synchronized.operation import transform
from mmssl.data.synchronized.space import Crop, Flip

BANDS = np.random.default_rng(0).integers(0, 2**16, (7, 12, 10), dtype=np.uint16)  # [channel, height, width]


def build(**changes: Any) -> ArrayModality:
    settings = {"axes": ["channel", "height", "width"], "channels": 7, "size": 8}
    return ArrayConfig(**(settings | changes)).build("bands")


def saved(array: np.ndarray, save: Any = np.save, **named: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, array, **named) if not named else save(file, **named)
    return file.getvalue()


def header(text: str) -> bytes:
    padded = text.ljust(118 - 10) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


def refused(modality: ArrayModality, data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        modality.decode(data, "npy")
    return caught.value


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "i2", "i4", "f2", "f4", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_keep_their_type_and_their_place(save: Any, dtype: str, order: str) -> None:
    array = np.asarray(BANDS % 251, dtype=dtype, order=order)  # type: ignore[call-overload]
    value = build().decode(saved(array, save), "npy")
    assert value.dtype == array.dtype.newbyteorder("=")
    assert value.dtype.isnative
    np.testing.assert_array_equal(value, array.transpose(1, 2, 0))
    assert value.flags.c_contiguous
    assert value.flags.writeable


@pytest.mark.parametrize(
    ("axes", "shape", "wanted"),
    [
        (("channel", "height", "width"), (7, 12, 10), (12, 10, 7)),
        (("height", "width", "channel"), (12, 10, 7), (12, 10, 7)),
        (("width", "channel", "height"), (10, 7, 12), (12, 10, 7)),
        (("height", "width"), (12, 10), (12, 10, 1)),
        (("date", "band", "height", "width"), (3, 4, 12, 10), (12, 10, 12)),
        (None, (3, 12, 13), (12, 13, 3)),
        (None, (12, 13, 3), (12, 13, 3)),
        (None, (12, 10), (12, 10, 1)),
        (None, (5000, 12), (5000, 1, 12)),
        (None, (9,), (9, 1, 1)),
        (None, (6, 7, 8, 9), (6, 504, 1)),
    ],
)
def test_axes_have_names(axes: tuple[str, ...] | None, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    made = arranged(array, axes)
    assert made.shape == wanted
    if axes and "band" in axes:
        np.testing.assert_array_equal(made[2, 5], array[:, :, 2, 5].reshape(-1))  # date by date, band by band


def test_other_axes_and_channels_are_refused_by_the_header() -> None:
    flat = header("{'descr': '<u2', 'fortran_order': False, 'shape': (12, 10), }") + bytes(240)
    assert str(refused(build(), flat)) == "shape: got shape [12, 10], wanted 3 axes: channel, height, width"
    assert str(refused(build(channels=4), saved(BANDS))) == "channels: got 7 channels, wanted 4 (`channels`)"


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (saved(np.array([[{}]], dtype=object)), "undecodable", "pickled objects, which run code"),
        (saved(np.zeros((2, 2), dtype="c8")), "undecodable", "numbers of type complex64"),
        (saved(np.zeros((2, 2), dtype=[("a", "f4")])), "undecodable", "numbers of type"),
        (saved(BANDS)[:-1], "undecodable", "got 1679 bytes of numbers, wanted 1680"),
        (saved(BANDS) + b"x", "undecodable", "got 1681 bytes of numbers, wanted 1680"),
        (header("{'descr': '<u2', 'fortran_order': False, 'shape': (99999, 99999), }"), "too_large", "max_values"),
        (header("{'descr': '<u2', 'fortran_order': False, 'shape': (-1, 4), }"), "empty", "got shape [-1, 4]"),
        (saved(np.zeros((0, 4))), "empty", "got shape [0, 4]"),
        (saved(np.float32(1)), "empty", "got shape []"),
        (header("{'descr': '<u2', 'fortran_order': "), "undecodable", "no header"),
        (saved(BANDS, np.savez)[:-40], "undecodable", "zip"),
        (saved(BANDS, np.savez, a=BANDS, b=BANDS), "entry", "got the arrays 'a', 'b', wanted one array"),
        (b"GIF89a", "undecodable", "wanted .npy or .npz"),
    ],
)  # fmt: skip
def test_foreign_and_damaged_files_are_refused(data: bytes, reason: str, detail: str) -> None:
    error = refused(build(axes=None, channels=None), data)
    assert error.reason == reason
    assert detail in error.detail


def test_a_zip_that_lies_is_refused() -> None:
    """Its header promises much or too little, or its numbers differ from the checksum."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "a.npy", header("{'descr': '<u2', 'fortran_order': False, 'shape': (9999, 9999), }") + bytes(9)
        )
    assert refused(build(axes=None, channels=None), file.getvalue()).reason == "too_large"
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("a.npy", saved(BANDS) + b"more")
    assert "got 1681 bytes or more, wanted 1680" in str(refused(build(), file.getvalue()))
    damaged = bytearray(saved(BANDS, np.savez))
    damaged[700] ^= 1
    assert refused(build(), bytes(damaged)).reason == "undecodable"


def test_an_array_of_several_is_named() -> None:
    data = saved(BANDS, np.savez, scene=BANDS, mask=BANDS[0])
    assert build(entry="scene").decode(data, "npz").shape == (12, 10, 7)
    assert "wanted 'sceen'" in str(refused(build(entry="sceen"), data))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_pictures_of_any_depth_are_arrays(dtype: type) -> None:
    grey = (BANDS[0] % 200).astype(dtype) * (1 if dtype == np.uint8 else 300)
    for form in ("TIFF", *(["PNG"] if np.dtype(dtype).kind == "u" else [])):
        file = io.BytesIO()
        Image.fromarray(grey).save(file, form)
        value = build(channels=1).decode(file.getvalue(), "png")
        assert value.dtype == dtype
        np.testing.assert_array_equal(value, grey[:, :, None])
        assert "max_values" in str(refused(build(channels=1, max_values=100), file.getvalue()))
        assert refused(build(channels=1), file.getvalue()[:40]).reason == "undecodable"


def test_colours_of_sixteen_bits_and_alpha_are_channels() -> None:
    from torchvision.io import encode_png

    colours = BANDS[:4].transpose(1, 2, 0) >> 8
    file = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).save(file, "PNG")
    np.testing.assert_array_equal(build(channels=4).decode(file.getvalue(), "png"), colours)
    grey = bytes(encode_png(torch.zeros(1, 4, 4, dtype=torch.uint8)).tolist())
    assert build(channels=1).decode(grey, "png").shape == (4, 4, 1)
    palette = io.BytesIO()
    Image.new("P", (4, 4)).save(palette, "PNG")
    assert "palette" in str(refused(build(channels=1), palette.getvalue()))
    pages = io.BytesIO()
    Image.new("L", (4, 4)).save(pages, "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))])
    assert "2 pages" in str(refused(build(channels=1), pages.getvalue()))


def test_nan_is_refused_or_becomes_the_mean_of_its_channel() -> None:
    array = BANDS.astype(np.float32)
    array[0, 0, 0], array[3] = np.nan, np.nan
    error = refused(build(), saved(array))
    assert str(error) == "not_finite: 121 of 840 numbers are NaN, 0 infinite; `nan: mean` takes the mean of its channel"
    value = build(nan="mean").decode(saved(array), "npy")
    assert value[0, 0, 0] == pytest.approx(BANDS[0].reshape(-1)[1:].mean())
    assert (value[:, :, 3] == 0).all()
    np.testing.assert_array_equal(value[1:, :, 0], BANDS[0, 1:])
    np.testing.assert_array_equal(build(nan="mean").from_value(array), value)
    array[1, 1, 1] = np.inf
    assert "1 infinite" in str(refused(build(nan="mean"), saved(array)))
    nothing = str(refused(build(nan="mean"), saved(np.full_like(array, np.nan))))
    assert nothing == "not_finite: it has no numbers but NaN"


def test_audits_measure_in_the_units_of_the_file() -> None:
    """Small deviations about large numbers are not lost, and pixels with NaN do not count."""
    kelvin = 30_000 + np.random.default_rng(1).standard_normal((2, 30, 30))
    kelvin[0, :3] = np.nan
    found = ArrayConfig.usual().build("array").inspect(saved(kelvin), "npy")
    assert found.figures["NaN share"] == [0.05]
    assert found.counted == {"shape": "2 x 30 x 30 float64"}
    assert found.flags == ("with NaN",)
    tally = Tally()
    tally.add(found)
    report = tally.report()
    assert report.mean == pytest.approx(kelvin[:, 3:].mean(axis=(1, 2)))
    assert report.std == pytest.approx(kelvin[:, 3:].std(axis=(1, 2)), rel=1e-3)
    assert ArrayConfig.usual().build("array").inspect(saved(np.ones((4, 4))), "npy").flags == ("constant",)


def test_crops_are_resized_as_floats_with_antialiasing() -> None:
    value = build().decode(saved(BANDS), "npy")
    view = build(views={"crop": {"kind": "resized_crop", "interpolation": "bilinear"}}).view("crop")
    made = view(value, {"box": [2, 1, 9, 8], "flip": False, "turns": 0})
    part = torch.from_numpy(value[2:11, 1:9].astype(np.float32)).permute(2, 0, 1)[None]
    wanted = F.interpolate(part, (8, 8), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(made, wanted)
    same = view(value, {"box": [0, 0, 8, 8], "flip": False, "turns": 0})
    np.testing.assert_array_equal(same.numpy(), value[:8, :8].transpose(2, 0, 1))
    same.zero_()
    assert value[:8, :8].any()  # the view is a copy


def test_flips_and_turns_are_the_eight_symmetries() -> None:
    value = build().decode(saved(BANDS), "npy")
    view = build(views={"crop": {"kind": "resized_crop", "flip": 0.5, "turns": True}}).view("crop")
    draws = [view.draw(value, np.random.default_rng(seed)) for seed in range(60)]
    assert {(one["flip"], one["turns"]) for one in draws} == {(f, t) for f in (False, True) for t in range(4)}
    box = {"box": [0, 0, 8, 8]}
    still = view(value, {**box, "flip": False, "turns": 0})
    turned = view(value, {**box, "flip": True, "turns": 1})
    np.testing.assert_array_equal(turned.numpy(), np.rot90(still.numpy()[:, :, ::-1], 1, (1, 2)))
    assert "crop.geometry" not in build(views={"crop": {"kind": "resized_crop", "turns": True}}).views
    assert "crop.geometry" in build().views


def test_synchronized_flips_crops_and_mixes_keep_the_type() -> None:
    modality = build()
    values = {"bands": modality.decode(saved(BANDS), "npy")}
    flipped, _ = Synchronized([Flip(probability=1.0)], {"bands": modality})(values, (0,))
    np.testing.assert_array_equal(flipped["bands"], values["bands"][:, ::-1])
    cropped, (entry,) = Synchronized([Crop(scale=(0.2, 0.3))], {"bands": modality})(values, (0,))
    assert cropped["bands"].shape[2] == 7
    assert cropped["bands"].size < 0.5 * values["bands"].size
    assert entry["applied"]
    other = {"bands": np.full((5, 4, 7), 65_535, dtype=np.uint16)}
    drawn = {"op": Mixup().kind, "applied": True, "weight": 0.25, "text": "and"}
    mixed = transform(drawn, values, {"bands": modality}, other)["bands"]
    assert mixed.dtype == np.uint16
    np.testing.assert_allclose(mixed, 0.25 * values["bands"] + 0.75 * 65_535, atol=0.51)


def test_inputs_from_python_are_checked_like_files() -> None:
    value = build().decode(saved(BANDS), "npy")
    np.testing.assert_array_equal(build().from_value(BANDS), value)
    floats = torch.from_numpy(BANDS.astype(np.float32))
    np.testing.assert_array_equal(build().from_value(floats), value)
    for wrong, reason in (
        (BANDS[0], "shape"), (BANDS[:3], "channels"), (BANDS.astype("c8"), "type"), ([[1]], "type"),
        (np.full((7, 2, 2), np.nan), "not_finite"),
    ):  # fmt: skip
        with pytest.raises(DecodeError) as caught:
            build().from_value(wrong)
        assert caught.value.reason == reason


@pytest.mark.parametrize("axes", [["channel", "height"], ["height", "width", "height"], ["height"]])
def test_axes_that_do_not_fit_are_refused_at_build(axes: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"axes"):
        build(axes=axes)
