"""Picture files and PIL pictures to uint8 RGB pixels, under stated rules.

Pixels equal Pillow's `convert("RGB")`, as in open_clip and timm, also those of palettes and CMYK. Different from there: pictures
are turned as their EXIF orientation says, values of more than 8 bits are scaled where Pillow clips them, and a fourth band is not
taken for alpha. Each difference has a key. Colour profiles are not applied; `open_clip_pictures`
has the rules of open_clip for files, which it resizes before it converts them.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from mmssl.core.errors import DataError
from mmssl.data.media.png import decode_deep_colours, has_deep_colours
from mmssl.data.modalities.orientation import UPRIGHT, Orientation, exif_orientation, orientation_of, turned
from mmssl.data.modality import DecodeError

Depth = Literal["scale", "window", "refuse"]
Alpha = Literal["mask", "drop", "white", "refuse"]
OnDamage = Literal["refuse", "show"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
"""Pillow's names of the formats that are decoded besides HEIC."""
SIGNATURES = {
    "jpg": rb"\xff\xd8\xff",
    "jpeg": rb"\xff\xd8\xff",
    "png": rb"\x89PNG\r\n\x1a\n",
    "webp": rb"RIFF....WEBP",
    "gif": rb"GIF8[79]a",
    "avif": rb"....ftyp(avi[fs]|mif1.{0,40}avif)",
    "heic": rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "heif": rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
}
"""Extension -> regular expression of the first bytes."""
TURNED, TRANSPARENT, ANIMATED = "turned by EXIF", "with alpha", "animated: first frame"
DEEP, DAMAGED = "of more than 8 bits", "damaged: decoded as far as it goes"
_WANTED = "a JPEG, PNG, WebP, GIF, AVIF or HEIC"
_USED = 1 << 14  # a largest value below it: the file has 14 bits or fewer in a container of 16


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: uint8 [H, W, 3].
        flags: what `mmssl shards stats` counts: TURNED, TRANSPARENT, ANIMATED, DEEP, DAMAGED.
    """

    pixels: np.ndarray
    flags: tuple[str, ...]


@dataclass(frozen=True)
class PictureDecoder:
    """Decoder of picture files and PIL pictures. `ImageConfig` explains the rules.

    Attributes:
        max_pixels: larger pictures are refused by their header.
        orientation, depth, alpha, on_damage: rules.
        formats: Pillow's names of the formats that are decoded besides HEIC.
        least_side: JPEG files are decoded at the smallest of 1, 1/2, 1/4 and 1/8 of their size whose shorter side has this number
            of pixels; None: as they are.
    """

    max_pixels: int
    orientation: Orientation = "exif"
    depth: Depth = "scale"
    alpha: Alpha = "mask"
    on_damage: OnDamage = "refuse"
    formats: tuple[str, ...] = FORMATS
    least_side: int | None = None

    def decode(self, data: bytes) -> Picture:
        """Decode a file. The format is detected from the bytes.

        Raises:
            DecodeError: "undecodable" (another format, or damaged), "too_large", "depth", "bands", "alpha", "range", "not_finite".
            DataError: the decoder of the format is not installed.
        """
        if re.match(SIGNATURES["jpg"], data):
            return self._decode_jpeg(data)
        with self.opened(data) as image:
            image.load()
            _check_bands(image)
            return self._converted(image, data, exif_orientation(data))

    @contextmanager
    def opened(self, data: bytes) -> Iterator[Image.Image]:
        """Open a file with Pillow, and check its size; errors in the block are DecodeErrors as of `decode`."""
        formats = ("HEIF",) if _is_heic(data) else self.formats
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` is the limit
                image = Image.open(io.BytesIO(data), formats=formats)
            with image:
                self.check_size(image.height, image.width)
                yield image
        except DecodeError:
            raise
        except UnidentifiedImageError as error:
            detail = f"got {len(data)} bytes beginning with {data[:12]!r}, wanted {_WANTED}"
            raise DecodeError("undecodable", detail) from error
        except Image.DecompressionBombError as error:
            raise DecodeError("too_large", str(error)) from error
        except Exception as error:  # Pillow's readers raise many types of exceptions on foreign bytes
            detail = f"{len(data)} bytes beginning with {data[:12]!r}: {error or type(error).__name__}"
            raise DecodeError("undecodable", detail) from error

    def convert(self, image: Image.Image) -> Picture:
        """Convert a PIL picture like a file.

        Raises:
            DecodeError: as `decode`.
        """
        self.check_size(image.height, image.width)
        _check_bands(image)  # before anything makes Pillow load it
        load_pixels(image)
        return self._converted(image, b"", orientation_of(image))

    def check_size(self, height: int, width: int) -> None:
        """Raise DecodeError "too_large" if a picture of this size has more than `max_pixels`."""
        if height * width > self.max_pixels:
            detail = f"got {width} x {height} pixels, wanted at most {self.max_pixels} in all (`max_pixels`)"
            raise DecodeError("too_large", detail)

    def _decode_jpeg(self, data: bytes) -> Picture:
        # Strict: Pillow accepts most JPEGs with flipped bits or a missing half, and fills the rest with grey.
        damaged: tuple[str, ...] = ()
        try:
            pixels = self._jpeg_pixels(data, strict=True)
        except ValueError as error:
            if self.on_damage == "refuse":
                raise _damaged_jpeg(data, error) from error
            try:
                pixels, damaged = self._jpeg_pixels(data, strict=False), (DAMAGED,)
            except (ValueError, KeyError) as hopeless:  # KeyError: a subsampling that simplejpeg does not know
                raise _damaged_jpeg(data, hopeless) from hopeless
        return self._turned(pixels, exif_orientation(data), damaged)

    def _jpeg_pixels(self, data: bytes, *, strict: bool) -> np.ndarray:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=strict)
        self.check_size(height, width)
        if space not in ("CMYK", "YCCK"):
            pixels: np.ndarray = simplejpeg.decode_jpeg(
                data, colorspace="RGB", strict=strict, **_least_size(height, width, self.least_side)
            )
            return pixels
        inks = 255 - simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=strict)  # stored inverted, as by Adobe
        return np.array(Image.fromarray(inks, "CMYK").convert("RGB"))  # libjpeg's own RGB differs by one level

    def _converted(self, image: Image.Image, data: bytes, orientation: int) -> Picture:
        flags: list[str] = []
        grey = image.mode.startswith("I") or image.mode == "F"
        deep = grey or has_deep_colours(data)
        if grey:
            values = np.asarray(image)
            key = image.info.get("transparency")
            alpha = None if key is None else np.where(values == key, 0, 255).astype(np.uint8)
            pixels = np.repeat(self._eight_bits(values)[:, :, None], 3, axis=2)
        elif deep:
            values = decode_deep_colours(data)
            colours = 1 if values.shape[2] == 2 else 3
            alpha = np.rint(values[..., -1] / 257).astype(np.uint8) if colours < values.shape[2] else None
            pixels = np.broadcast_to(self._eight_bits(values[..., :colours]), (*values.shape[:2], 3))
        elif image.has_transparency_data:
            four = np.asarray(image.convert("RGBA"))
            pixels, alpha = four[..., :3], four[..., 3]
        else:
            pixels, alpha = np.array(image.convert("RGB")), None
        if deep:
            flags.append(DEEP)
        if alpha is not None and alpha.min() < 255:
            may_be_band = image.mode in ("LA", "RGBA")  # a palette has no bands
            pixels = self._without_alpha(pixels, alpha, may_be_band)
            flags.append(TRANSPARENT)
        return self._turned(pixels, orientation, (*flags, *((ANIMATED,) if is_animated(image) else ())))

    def _turned(self, pixels: np.ndarray, orientation: int, flags: tuple[str, ...]) -> Picture:
        flags = flags if orientation == UPRIGHT else (*flags, TURNED)
        return Picture(turned(pixels, orientation if self.orientation == "exif" else UPRIGHT), flags)

    def _eight_bits(self, values: np.ndarray) -> np.ndarray:
        """Values of more than 8 bits as uint8 of the same shape, by the rule `depth`."""
        low, high = values.min(), values.max()
        got = f"got a picture of {values.dtype.newbyteorder('=')} values from {low:g} to {high:g}"
        window = "`depth: window` shows its own least and largest value as black and white"
        if self.depth == "refuse":
            raise DecodeError("depth", f"{got}, wanted 8 bits: `depth: scale` and `depth: window` convert it")
        if not np.isfinite([low, high]).all():
            raise DecodeError("not_finite", f"{got}, wanted numbers")
        bottom, top = (0.0, 1.0) if values.dtype.kind == "f" else (0.0, 65535.0)
        if self.depth == "window":
            bottom, top = float(low), float(high)
        elif low < bottom or high > top:
            raise DecodeError("range", f"{got}, wanted {bottom:g} to {top:g}; {window}")
        elif values.dtype.kind != "f" and 0 < high < _USED:
            raise DecodeError("depth", f"{got}, which is (nearly) black on a scale of 16 bits; {window}")
        scaled = (values - np.float64(bottom)) * (255 / (top - bottom or 1.0))
        made: np.ndarray = np.rint(scaled).astype(np.uint8)
        return made

    def _without_alpha(self, pixels: np.ndarray, alpha: np.ndarray, may_be_band: bool) -> np.ndarray:
        """Colours [H, W, 3] of a picture with alpha [H, W], by the rule `alpha`."""
        if self.alpha == "refuse":
            detail = "got a picture with alpha, wanted an opaque one: `alpha: drop` and `alpha: white` convert it"
            raise DecodeError("alpha", detail)
        if self.alpha == "mask" and may_be_band and _is_band(alpha):
            detail = (
                "got a fourth channel that is no mask: over half of the picture would be half transparent. "
                "If it is a band, store the picture as an array; if it is alpha, set `alpha: drop` or `alpha: white`"
            )
            raise DecodeError("bands", detail)
        if self.alpha != "white":
            return pixels
        weight = alpha[..., None].astype(np.uint32)
        return ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def _is_heic(data: bytes) -> bool:
    """Whether the bytes begin like a HEIC, whose decoder is then registered.

    Raises:
        DataError: they begin like a HEIC or AVIF, and its decoder is not installed.
    """
    if re.match(SIGNATURES["avif"], data[:64], re.DOTALL):
        if not features.check("avif"):
            raise DataError(
                "got an AVIF picture, and this Pillow decodes none: install a wheel of Pillow 12.2 or later"
            )
        return False
    if not re.match(SIGNATURES["heic"], data[:64], re.DOTALL):
        return False
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError("got a HEIC picture, which needs another package: pip install 'mmssl[heic]'") from error
    pillow_heif.options.DECODE_THREADS = 1  # many workers decode in parallel
    pillow_heif.register_heif_opener()
    return True


def _least_size(height: int, width: int, least_side: int | None) -> dict[str, int]:
    """The size that libjpeg may scale a picture to. Of its eighths only powers of two: the others take longer than full size."""
    fitting = [d for d in (8, 4, 2) if least_side is not None and min(-(-height // d), -(-width // d)) >= least_side]
    return {"min_height": -(-height // fitting[0]), "min_width": -(-width // fitting[0])} if fitting else {}


def _damaged_jpeg(data: bytes, error: Exception) -> DecodeError:
    detail = f"JPEG of {len(data)} bytes: {error}; `on_damage: show` decodes what browsers show of it"
    return DecodeError("undecodable", detail)


def load_pixels(image: Image.Image) -> None:
    """Make Pillow read the pixels of a picture that was opened elsewhere.

    Raises:
        DecodeError: "undecodable": it is closed or damaged.
    """
    try:
        image.load()
    except Exception as error:  # of any type, as `opened` says
        detail = (
            f"got a PIL picture without pixels: {error}; call its load() before its file is closed, or give the path"
        )
        raise DecodeError("undecodable", detail) from error


def is_animated(image: Image.Image) -> bool:
    """Whether a picture has several frames."""
    try:
        return bool(getattr(image, "is_animated", False))  # PIL pictures without a file have no such attribute
    except Exception:  # damage behind the first frame, which is all that is used
        return True


def _is_band(alpha: np.ndarray) -> bool:
    """Whether a channel is no mask: over half of its pixels are neither opaque nor transparent, at more than 32 levels."""
    partly = np.bincount(alpha.ravel(), minlength=256)[1:255]
    return bool(partly.sum() > alpha.size / 2 and np.count_nonzero(partly) > 32)


def _check_bands(image: Image.Image) -> None:
    """Refuse pictures of which Pillow drops bands or bits: of a TIFF, and of a PNG that it was not asked to load yet."""
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        samples, extra = tags.get(277, 1), tags.get(338, ())
        colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(tags.get(262, 1), 1)  # RGB, CMYK, YCbCr, Lab; others: grey, palette
        if samples > colours and not (samples == colours + 1 and extra in ((1,), (2,))):  # alpha, premultiplied or not
            detail = f"got a TIFF of {samples} bands, wanted {colours} and at most alpha: store it as an array"
            raise DecodeError("bands", detail)
        bits = max(tags.get(258, (1,)))
    else:
        tiles = image.tile if isinstance(image, PngImageFile) else ()
        bits = 16 if any(";16" in str(tile.args) for tile in tiles) else 8
    if bits > 8 and image.mode[0] not in "IF":
        detail = (
            f"got {bits}-bit colours, of which Pillow keeps 8 bits, wanted 8-bit colours, or the path of a 16-bit PNG"
        )
        raise DecodeError("depth", detail)
