from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps
from pydantic import ValidationError

from mmssl.core.sample import Origin, Sample
from mmssl.data.draws import draw_views, make_views
from mmssl.data.modalities.image import ImageConfig, ImageModality
from mmssl.data.modalities.views.colours import JitterConfig, draw_jitter
from mmssl.data.modalities.views.image import gaussian_blur, random_box
from mmssl.data.modality import DecodeError
from mmssl.data.stream.collate import BatchRow, collate
from tests.data.make import encode, noise


def build(text: str = '{"size": 32}') -> ImageModality:
    return ImageConfig.model_validate_json(text).build("image")


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def differences(x: torch.Tensor, reference: Image.Image) -> tuple[float, int]:
    """Mean and largest absolute difference in grey levels."""
    apart = np.abs(x.permute(1, 2, 0).numpy().astype(int) - np.asarray(reference).astype(int))
    return float(apart.mean()), int(apart.max())


PICTURE = Image.fromarray(noise(0, 50, 70))


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encode(PICTURE, quality=95), 0),
        (encode(PICTURE, quality=95, subsampling=0), 0),
        (encode(PICTURE, progressive=True), 0),
        (encode(PICTURE.convert("L")), 0),
        (encode(PICTURE.convert("CMYK")), 0),
        (simplejpeg.encode_jpeg(np.dstack([noise(3, 50, 70), noise(4, 50, 70)[..., :1]]), colorspace="CMYK"), 0),
        (encode(PICTURE, "PNG"), 0),
        (encode(PICTURE.convert("L"), "PNG"), 0),
        (encode(PICTURE.convert("1"), "PNG"), 0),
        (encode(PICTURE.convert("LA"), "PNG"), 0),
        (encode(PICTURE.convert("RGBA"), "PNG"), 0),
        (encode(PICTURE.convert("P"), "PNG"), 0),
        (encode(PICTURE.convert("P"), "PNG", transparency=bytes(range(256))), 0),
        (encode(PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=5), "PNG", bits=4), 0),
        (encode(PICTURE.quantize(9), "GIF", transparency=3), 0),
        (encode(PICTURE, "PNG", transparency=(1, 2, 3)), 0),
        (encode(PICTURE, "WEBP"), 0),
        (encode(PICTURE.convert("RGBA"), "WEBP", lossless=True), 0),
    ],
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # from the reference, not from ours
def test_pixels_are_those_of_pillow(data: bytes, tolerance: int) -> None:
    pixels = build().decode(data, "jpg")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (50, 70, 3)
    assert pixels.flags.writeable
    assert np.abs(pixels.astype(int) - rgb(data)).max() <= tolerance


JPEG = encode(noise(1, 200, 200), quality=90)
PNG = encode(noise(1, 60, 60), "PNG")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        JPEG[: len(JPEG) * 6 // 10],
        JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2),
        PNG[: len(PNG) // 2],
        PNG[:20] + b"\xff" * 40 + PNG[60:],
        encode(PICTURE, "WEBP")[:60],
        encode(PICTURE, "TIFF"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<html>not found</html>",
    ],
    ids=["empty", "magic", "cut", "zeros", "png cut", "png bits", "webp cut", "tiff", "eps", "html"],
)
def test_damaged_and_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        build().decode(data, "jpg")
    assert caught.value.reason == "undecodable"


def test_nearly_all_flipped_bits_are_noticed() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        data = bytearray(JPEG)
        for place in rng.integers(700, len(data), 20):  # behind the tables
            data[place] ^= 1 << int(rng.integers(8))
        try:
            build().decode(bytes(data), "jpg")
        except DecodeError:
            refused += 1
    assert refused >= 30  # Pillow refuses 1 in 8


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_large_pictures_are_refused_from_their_header(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(np.zeros((60, 60, 3), np.uint8), form)
    assert build('{"size": 32, "max_pixels": 3600}').decode(data, "jpg").shape == (60, 60, 3)
    monkeypatch.setattr("mmssl.data.modalities.pictures.simplejpeg.decode_jpeg", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(DecodeError, match="60 x 60") as caught:
        build('{"size": 32, "max_pixels": 3599}').decode(data, "jpg")
    assert caught.value.reason == "too_large"


def test_a_bomb_beyond_pillows_own_limit() -> None:
    data = bytearray(PNG)
    data[16:24] = (60000).to_bytes(4, "big") * 2
    with pytest.raises(DecodeError):
        build().decode(bytes(data), "png")
    big = encode(Image.new("1", (10000, 9100)), "PNG")  # above MAX_IMAGE_PIXELS, which only warns
    with pytest.raises(DecodeError, match="too_large"):
        build().decode(big, "png")


@pytest.mark.parametrize("box", [[20, 30, 370, 500], [0, 0, 427, 640], [100, 200, 230, 250], [5, 7, 120, 90]])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_equal_pillows(photos: list[bytes], box: list[int], interpolation: str) -> None:
    modality = build(
        f'{{"size": 224, "views": {{"crop": {{"kind": "resized_crop", "interpolation": "{interpolation}"}}}}}}'
    )
    for data in photos:
        x = modality.views["crop"](modality.decode(data, "jpg"), {"box": box, "flip": False})
        top, left, height, width = box
        cut = Image.fromarray(rgb(data)).crop((left, top, left + width, top + height))
        mean, largest = differences(x, cut.resize((224, 224), Image.Resampling[interpolation.upper()]))
        assert mean <= 0.05
        assert largest <= 9


def test_flip_is_horizontal(photos: list[bytes]) -> None:
    modality = build()
    pixels = modality.decode(photos[0], "jpg")
    crop = modality.views["crop"]
    parameters = {"box": [0, 0, 400, 600], "flip": False}
    assert torch.equal(crop(pixels, parameters | {"flip": True}), crop(pixels, parameters).flip(2))


class TorchRng:
    """Draws as torchvision does, so that one seed gives both the same numbers."""

    def uniform(self, low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high).item()

    def integers(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,)).item())


@pytest.mark.parametrize("size", [(300, 400), (50, 700), (900, 30), (5, 4), (1, 1)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0)])
def test_boxes_are_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    from torchvision.transforms import RandomResizedCrop

    image = torch.zeros(3, *size)
    for seed in range(60):
        torch.manual_seed(seed)
        theirs = RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
        torch.manual_seed(seed)
        assert random_box(*size, scale, (3 / 4, 4 / 3), TorchRng()) == list(theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(427, 640), (640, 427), (224, 300), (100, 100), (224, 224), (97, 401)])
def test_eval_view_is_open_clips(photos: list[bytes], size: tuple[int, int]) -> None:
    from open_clip.transform import image_transform

    theirs = image_transform(224, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = Image.fromarray(rgb(photos[0])).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    x = build('{"size": 224}').views["eval"](np.array(image), {})
    apart = (x.float() - theirs(image) * 255).abs()
    assert x.dtype == torch.uint8
    assert apart.mean() <= 0.05
    assert apart.max() <= 9


def test_a_line_of_pixels_is_not_blown_up() -> None:
    x = build('{"size": 64}').views["eval"](noise(0, 1, 20000), {})
    assert x.shape == (3, 64, 64)


VIEWS = """{"size": 64, "views": {
    "crop": {"kind": "resized_crop", "scale": [0.3, 1.0], "flip": 0.5},
    "simclr": {"kind": "simclr"},
    "order": {"kind": "order", "patch_size": 16}}}"""


@pytest.mark.parametrize("kind", ["crop", "simclr", "order", "eval"])
def test_views_replay_from_their_parameters(kind: str) -> None:
    import json

    modality = pickle.loads(pickle.dumps(build(VIEWS)))
    view, pixels = modality.views[kind], noise(3, 90, 120)
    seen = set()
    for seed in range(12):
        parameters = view.draw(pixels, np.random.default_rng(seed))
        x = view(pixels, parameters)
        assert torch.equal(x, view(pixels.copy(), json.loads(json.dumps(parameters))))
        assert view.draw(pixels, np.random.default_rng(seed)) == parameters
        assert (x.shape, x.dtype) == (view.blank().shape, view.blank().dtype)
        assert x.numel() == x.untyped_storage().nbytes() // x.itemsize  # holds no larger picture alive
        seen.add(x.numpy().tobytes())
    assert len(seen) == (1 if kind == "eval" else 12)


def test_order_is_a_permutation() -> None:
    view = build(VIEWS).views["order"]
    x = view(None, view.draw(None, np.random.default_rng(0)))
    assert x.dtype == torch.int64
    assert sorted(x.tolist()) == list(range(16)) == view.blank().tolist()
    assert x.tolist() != list(range(16))


def simclr(**changes: Any) -> Any:
    neutral = {"box": [0, 0, 64, 64], "flip": False, "jitter": [], "grayscale": False, "sigma": 0.0, "solarize": False}
    return build(VIEWS).views["simclr"](noise(5, 64, 64), neutral | changes)


PICTURE_64 = Image.fromarray(noise(5, 64, 64))


def test_each_operation_of_simclr_does_what_its_name_says() -> None:
    from torchvision.transforms.v2 import functional as tv

    plain = torch.from_numpy(noise(5, 64, 64)).permute(2, 0, 1)
    assert torch.equal(simclr(), plain)
    assert torch.equal(simclr(flip=True), plain.flip(2))
    assert torch.equal(simclr(grayscale=True), tv.rgb_to_grayscale(plain, 3))
    for name, amount in (("brightness", 1.4), ("contrast", 0.6), ("saturation", 1.5), ("hue", -0.1)):
        assert torch.equal(simclr(jitter=[[name, amount]]), getattr(tv, f"adjust_{name}")(plain, amount))
    one, other = [["brightness", 1.6], ["contrast", 0.5]], [["contrast", 0.5], ["brightness", 1.6]]
    assert not torch.equal(simclr(jitter=one), simclr(jitter=other))
    assert simclr(sigma=2.0).float().var() < plain.float().var()
    assert torch.equal(simclr(solarize=True), tv.solarize(plain, 128))
    assert torch.equal(
        simclr(solarize=True).permute(1, 2, 0), torch.from_numpy(np.array(ImageOps.solarize(PICTURE_64, 128)))
    )
    assert torch.equal(simclr(solarize=True, flip=True), tv.solarize(plain, 128).flip(2))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_the_two_dimensional_gaussian(sigma: float) -> None:
    from torchvision.transforms.v2 import functional as tv

    x = torch.from_numpy(noise(5, 64, 80)).permute(2, 0, 1).contiguous()
    x[:, 20:24, 20:24] = 255
    theirs = tv.gaussian_blur(x, [9, 9], [sigma, sigma])
    assert (gaussian_blur(x, 0.1, sigma).int() - theirs.int()).abs().max() <= 1  # int(80 * 0.1 / 2) = 4 on each side


def test_simclr_draws_with_its_probabilities() -> None:
    view = build(VIEWS).views["simclr"]
    rng = np.random.default_rng(0)
    draws = [view.draw(noise(0, 64, 64), rng) for _ in range(1000)]
    shares = {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "sigma": 0.5}
    for name, share in shares.items():
        assert np.mean([bool(draw[name]) for draw in draws]) == pytest.approx(share, abs=0.05)
    jitters = [dict(draw["jitter"]) for draw in draws if draw["jitter"]]
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.2, 1.8),
        ("saturation", 0.2, 1.8),
        ("hue", -0.2, 0.2),
    ):
        amounts = [jitter[name] for jitter in jitters]
        assert low <= min(amounts) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(amounts) <= high
    assert len({tuple(jitter) for jitter in jitters}) == 24  # every order of the four


def test_two_kinds_of_views_of_byol() -> None:
    """Blur and solarization of its two views (arXiv:2006.07733, appendix B), and a threshold of one's own."""
    modality = build(
        """{"size": 64, "views": {"first": {"kind": "simclr", "blur": 1.0},
        "second": {"kind": "simclr", "blur": 0.1, "solarize": 0.2, "solarize_threshold": 200}}}"""
    )
    pixels, rng = noise(5, 64, 64), np.random.default_rng(0)
    for kind, blur, solarize in (("first", 1.0, 0.0), ("second", 0.1, 0.2)):
        draws = [modality.views[kind].draw(pixels, rng) for _ in range(2000)]
        tolerance = 0.03 if kind == "second" else 0
        assert np.mean([draw["sigma"] > 0 for draw in draws]) == pytest.approx(blur, abs=tolerance)
        assert np.mean([draw["solarize"] for draw in draws]) == pytest.approx(solarize, abs=tolerance)
    plain = {"box": [0, 0, 64, 64], "flip": False, "jitter": [], "grayscale": False, "sigma": 0.0, "solarize": False}
    x, inverted = (modality.views["second"](pixels, {**plain, "solarize": it}) for it in (False, True))
    assert torch.equal(inverted, torch.where(x >= 200, 255 - x, x))


@pytest.mark.parametrize("kind", ["resized_crop", "simclr", "rand_augment"])
def test_views_of_their_own_size_stand_beside_full_ones(kind: str) -> None:
    """Two global and eight local crops of one picture, as DINO has them, in one batch."""
    modality = build(
        f"""{{"size": 64, "views": {{"crop": {{"kind": "{kind}"}}, "local": {{"kind": "{kind}", "size": 24, "scale": [0.05, 0.4]}},
        "order": {{"kind": "order", "patch_size": 8, "size": 24}}}}}}"""
    )
    needs, sample = (
        {"image": {"crop": 2, "local": 8, "order": 1}},
        Sample("a", Origin("", "s", 0, 0), 0, {"image": noise(1, 90, 70)}),
    )
    rows = [
        BatchRow(number, "a", make_views(sample, {"image": modality}, needs, drawn))
        for number in range(3)
        for drawn in [draw_views(sample, {"image": modality}, needs, (number,))]
    ]
    batch = collate([*rows, BatchRow(3, "b", {})], {"image": modality}, needs)
    shapes = {name: tuple(x.shape) for name, x in batch["image"].items()}
    assert shapes == {
        **dict.fromkeys(["crop0", "crop1"], (4, 3, 64, 64)),
        **dict.fromkeys([f"local{i}" for i in range(8)], (4, 3, 24, 24)),
        "order0": (4, 9),
    }
    assert {kind: view.pixels for kind, view in modality.views.items() if "geometry" not in kind} == {
        "crop": 64, "local": 24, "order": None, "eval": 64,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["resized_crop", "simclr", "rand_augment"])
@pytest.mark.parametrize("flip", [0.0, 0.2, 1.0])
def test_views_are_flipped_as_often_as_the_recipe_says(kind: str, flip: float) -> None:
    view = build(f'{{"size": 16, "views": {{"crop": {{"kind": "{kind}", "flip": {flip}}}}}}}').views["crop"]
    rng = np.random.default_rng(0)
    flips = [view.draw(noise(0), rng)["flip"] for _ in range(1000)]
    assert np.mean(flips) == pytest.approx(flip, abs=0.05 if 0 < flip < 1 else 0)


def test_each_change_of_colours_has_its_own_range() -> None:
    view = build(
        """{"size": 16, "views": {"crop": {"kind": "simclr", "jitter": 1.0, "brightness": 0.1, "contrast": 0.4,
        "saturation": 1.5, "hue": 0.05}}}"""
    ).views["crop"]
    rng = np.random.default_rng(0)
    drawn = [dict(view.draw(noise(0), rng)["jitter"]) for _ in range(500)]
    ranges = {"brightness": (0.9, 1.1), "contrast": (0.6, 1.4), "saturation": (0.0, 2.5), "hue": (-0.05, 0.05)}
    for name, (low, high) in ranges.items():
        amounts = [jitter[name] for jitter in drawn]
        assert low <= min(amounts) < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < max(amounts) <= high


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"size": 64, "views": {"order": {"kind": "order", "patch_size": 14}}}',
            "view 'order': got patch_size 14, wanted a divisor of size 64",
        ),
        (
            '{"size": 64, "views": {"order": {"kind": "order", "patch_size": 16, "size": 24}}}',
            "got patch_size 16, wanted a divisor of size 24",
        ),
        ('{"size": 64, "views": {"crop": {"kind": "simclr", "solarize_threshold": 99}}}', "without solarize"),
        ('{"size": 64, "views": {"crop": {"kind": "simclr", "size": 4}}}', "greater than or equal to 8"),
        ('{"size": 64, "views": {"eval": {"kind": "resized_crop"}}}', "another name"),
        ('{"size": 64, "views": {"crop": {"kind": "resized_crop", "scale": [1.0, 0.5]}}}', "smallest"),
        ('{"size": 64, "views": {"crop": {"kind": "resized_crop", "scale": [0.5, 1.5]}}}', "at most 1"),
        ('{"size": 64, "views": {"crop": {"kind": "resized_crop", "flip": 1.5}}}', "less than or equal to 1"),
        ('{"size": 64, "views": {"crop": {"kind": "simclr", "brightness": -0.1}}}', "greater than or equal to 0"),
        ('{"size": 64, "views": {"crop": {"kind": "simclr", "hue": 0.6}}}', "less than or equal to 0.5"),
        ('{"size": 64, "views": {"crop": {"kind": "cropped"}}}', "resized_crop"),
        ('{"size": "64"}', "valid integer"),
        ('{"size": 64, "extensions": [".jpg"]}', "leading dot"),
        ('{"size": 64, "extensions": []}', "at least one"),
    ],
)
def test_configs_that_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImageConfig.model_validate_json(text)


def test_a_view_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'simclr'.*'crop', 'crop.geometry', 'eval'.*'simclr'"):
        build(VIEWS).view("simcl")


def test_colour_changes_of_strength_zero_are_left_out_and_change_no_other_draw() -> None:
    full = JitterConfig(jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    less = full.model_copy(update={"hue": 0.0, "contrast": 0.0})
    drawn, kept = (draw_jitter(config, np.random.default_rng(3)) for config in (full, less))
    assert kept == [[name, amount] for name, amount in drawn if name in ("brightness", "saturation")]
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("size", "scale", "decoded"),
    [
        (32, 0.9, (75, 100)),  # of 600 x 800: an eighth; the smallest crop needs 32 * sqrt(4 / 3 / 0.9) = 39
        (64, 0.9, (150, 200)),  # 78 > 75: a quarter
        (64, 0.08, (300, 400)),  # 262: a half
        (224, 0.08, (600, 800)),  # 915: as it is
    ],
)
def test_scaled_decoding_enlarges_no_crop(size: int, scale: float, decoded: tuple[int, int]) -> None:
    rows, columns = np.mgrid[0:600, 0:800].astype(np.float32)
    wave = (
        128 + 60 * np.sin(rows / 40)[..., None] + 40 * np.sin(columns[..., None] / np.array([30, 50, 70], np.float32))
    )
    file = encode(wave.clip(0, 255).astype(np.uint8), "JPEG", quality=95)
    views = {"crop": {"kind": "resized_crop", "scale": (scale, 1.0)}, "mask": {"kind": "order", "patch_size": 8}}
    full, scaled = (
        ImageConfig.model_validate({"size": size, "views": views, "decode": how}).build("image")
        for how in ("full", "scaled")
    )
    pixels = scaled.decode(file, "jpg")
    assert pixels.shape == (*decoded, 3)
    factor = 600 // decoded[0]
    means = full.decode(file, "jpg").reshape(decoded[0], factor, decoded[1], factor, 3).mean((1, 3))
    assert np.abs(pixels - means).mean() < 1.0, "each pixel is the mean of those that it stands for"
    png = encode(wave.clip(0, 255).astype(np.uint8), "PNG")
    assert scaled.decode(png, "png").shape == (600, 800, 3), "only libjpeg scales while decoding"
