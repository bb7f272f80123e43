"""Pictures under `rules: open_clip` equal open_clip's own, bit for bit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import MaybeConvertMode, image_transform
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms.functional import InterpolationMode, resized_crop

from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modality import DecodeError, Modality
from tests.data.make import encode, noise
from tests.data.modalities.test_pictures import png, with_mask

PICTURE = Image.fromarray(noise(0, 50, 70))
DEEP = np.random.default_rng(0).integers(0, 65536, (50, 70, 4), dtype=np.uint16)
TURNED = Image.Exif()
TURNED[0x0112] = 6
FILES = {
    "jpg": encode(PICTURE),
    "grey jpg": encode(PICTURE.convert("L")),
    "cmyk jpg": encode(PICTURE.convert("CMYK")),
    "turned jpg": encode(PICTURE, exif=TURNED),
    "png": encode(PICTURE, "PNG"),
    "palette": encode(PICTURE.quantize(9), "PNG"),
    "palette with alpha": encode(PICTURE.quantize(9), "PNG", transparency=bytes(range(0, 252, 28))),
    "palette with a key": encode(PICTURE.quantize(9), "GIF", transparency=3),
    "key": encode(PICTURE, "PNG", transparency=(1, 2, 3)),
    "1 bit": encode(PICTURE.convert("1"), "PNG"),
    "alpha": png(with_mask()),
    "grey with alpha": encode(Image.fromarray(with_mask()).convert("LA"), "PNG"),
    "near infrared": png(np.dstack([noise(1, 50, 70), noise(2, 50, 70)[..., 0]])),
    "16 bits, grey": png(DEEP[..., :1]),
    "16 bits, colours": png(DEEP[..., :3]),
    "16 bits, alpha": png(DEEP),
    "webp": encode(Image.fromarray(with_mask()), "WEBP", lossless=True),
}


def build(**settings: Any) -> Modality:
    return ImageConfig(size=32, rules="open_clip", **settings).build("image")


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning:PIL")
@pytest.mark.parametrize("kind", FILES)
def test_views_of_files(kind: str) -> None:
    modality, data = build(), FILES[kind]
    theirs = image_transform(32, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    value = modality.decode(data, "png")
    with Image.open(io.BytesIO(data)) as image:
        expected = theirs(image)
        assert torch.equal(modality.views["eval"](value, {}).float() / 255, expected)
        assert torch.equal(modality.views["eval"](modality.from_value(image), {}).float() / 255, expected)
        crop = modality.views["crop"]
        parameters = crop.draw(value, np.random.default_rng(3))
        cropped = resized_crop(image, *parameters["box"], [32, 32], InterpolationMode.BICUBIC)
        assert torch.equal(
            crop(value, parameters).permute(1, 2, 0), torch.tensor(np.array(MaybeConvertMode()(cropped)))
        )
    found = modality.inspect(data, "png")
    assert found.channels is not None
    assert found.channels.shape == value.shape


def test_the_rules_differ_where_conversion_and_resizing_do_not_commute() -> None:
    """Else the files above would prove nothing."""
    usual = ImageConfig(size=32, alpha="drop").build("image")
    differing = [
        kind
        for kind, data in FILES.items()
        if not torch.equal(
            usual.views["eval"](usual.decode(data, "png"), {}), build().views["eval"](build().decode(data, "png"), {})
        )
    ]
    assert {"cmyk jpg", "turned jpg", "palette", "1 bit", "alpha", "near infrared", "16 bits, grey"} <= set(differing)


def test_arrays_are_rgb() -> None:
    pixels = noise(1, 40, 60)
    expected = image_transform(32, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)(Image.fromarray(pixels))
    assert torch.equal(build().views["eval"](build().from_value(pixels), {}).float() / 255, expected)


def test_other_rules_have_no_effect_and_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"got rules 'open_clip' and alpha 'white', which has no effect then"):
        build(alpha="white")
    with pytest.raises(DecodeError, match="too_large"):
        build(max_pixels=99).decode(FILES["png"], "png")


@pytest.mark.parametrize("settings", [{}, {"rules": "open_clip"}])
def test_a_closed_picture_is_named(settings: Any) -> None:
    modality = ImageConfig(size=32, **settings).build("image")
    unread, read = Image.open(io.BytesIO(FILES["png"])), Image.open(io.BytesIO(FILES["png"]))
    read.load()
    for image in (unread, read):
        image.close()
        with pytest.raises(DecodeError, match=r"got a PIL picture without pixels: .*; call its load\(\) before"):
            modality.from_value(image)
