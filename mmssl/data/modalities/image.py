"""Image modality: JPEG, PNG and WebP bytes to uint8 pixels, decoded once for any number of views.

Pixels are as in Pillow, open_clip and timm: alpha is dropped without blending (as in `convert("RGB")`), and animations give their
first frame. 16-bit greyscale keeps its upper 8 bits. Unlike there, pictures are turned as their EXIF orientation says, as viewers
show them. Views are uint8: normalisation belongs to the encoder's `prepare`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from mmssl.core.encoder import InputSpec
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.modalities.arrays import as_pixels
from mmssl.data.modalities.choice import ChoiceConfig
from mmssl.data.modalities.image_views import EvalView, ResizedCropConfig, SimClrViewConfig
from mmssl.data.modalities.kernels.image import PICTURES
from mmssl.data.modalities.masks.image import BlocksConfig, InverseBlocksConfig, JepaConfig, OrderConfig
from mmssl.data.modalities.rand_augment import RandAugmentConfig
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View, build_views
from mmssl.data.timeline import Window

ImageViewConfig = Annotated[
    ResizedCropConfig
    | SimClrViewConfig
    | RandAugmentConfig
    | OrderConfig
    | BlocksConfig
    | InverseBlocksConfig
    | JepaConfig
    | ChoiceConfig,
    Field(discriminator="kind"),
]

Orientation = Literal["exif", "stored"]
ORIENTATION, UPRIGHT = 0x0112, 1
"""The EXIF tag, and its value for pictures that are not turned."""
_JPEG = b"\xff\xd8\xff"
_FORMATS = ("PNG", "WEBP")
_WANTED = "a path, bytes, a PIL picture (not of mode F), or an array or tensor [H, W, 3]: uint8, or floats in [0, 1]"


class ImageModality(Modality):
    """Images: uint8 arrays [H, W, 3].

    Args:
        max_pixels: larger pictures are refused by their header, before decoding.
        orientation: "exif": pictures are turned as their EXIF orientation says; "stored": they stay as they lie in the file.
    """

    kernels = PICTURES
    visual = True
    warnings: ClassVar[Mapping[str, str]] = {
        "repeated": "images repeat earlier ones: equal images are false negatives, or leak between splits"
    }

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        views: Mapping[str, View],
        max_pixels: int,
        orientation: Orientation = "exif",
    ) -> None:
        super().__init__(name, extensions, views)
        self.max_pixels, self.orientation = max_pixels, orientation

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        """Decode to pixels [H, W, 3] uint8. The format is detected from the bytes, not from the extension.

        Raises:
            DecodeError: "undecodable" (not a JPEG, PNG or WebP, or damaged: JPEG decoding is strict), "too_large".
        """
        stored = _decode_jpeg(data, self.max_pixels) if data.startswith(_JPEG) else _decode_other(data, self.max_pixels)
        return turned(stored, exif_orientation(data)) if self.orientation == "exif" else stored

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Width and height as decoded, whether EXIF turns it, the file to find duplicates, and the pixels."""
        pixels = self.decode(data, extension)
        height, width, _ = pixels.shape
        flags = ("turned by EXIF",) if exif_orientation(data) != UPRIGHT else ()
        return Inspection(
            {"width": [width], "height": [height]}, flags=flags, items=(("an image", data),), channels=pixels
        )

    def from_value(self, value: Any) -> np.ndarray:
        """Pixels [H, W, 3] uint8 of a PIL image of any mode except F, or of an array or tensor: uint8, or floats in [0, 1].

        Raises:
            DecodeError: "type", "shape", "empty", "not_finite", "range", "too_large".
        """
        if isinstance(value, Image.Image) and value.mode != "F":
            _check_size(value.height, value.width, self.max_pixels)
            number = value.getexif().get(ORIENTATION, UPRIGHT) if self.orientation == "exif" else UPRIGHT
            return turned(_to_rgb(value), number)
        pixels = as_pixels(value, _WANTED)
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DecodeError("shape", f"got shape {list(pixels.shape)}, wanted {_WANTED}")
        _check_size(pixels.shape[0], pixels.shape[1], self.max_pixels)
        return pixels


class ImageConfig(ModalityConfig):
    """Image settings: size and views.

    Attributes:
        size: height and width of views in pixels; a view may have a `size` of its own.
        views: kind of view that an objective needs -> its settings. The view "eval" always exists: shortest side resized, centre
            crop.
        max_pixels: pictures with more pixels are refused before decoding.
        orientation: "exif": pictures are turned as their EXIF orientation says, as viewers show them; "stored": they stay as they
            lie in the file, as in open_clip, where photographs of phones lie on their side.
    """

    kind: Literal["image"] = "image"
    size: int = Field(ge=8)
    views: dict[str, ImageViewConfig] = Field(default={"crop": ResizedCropConfig()})
    max_pixels: int = Field(default=25_000_000, ge=1)
    orientation: Orientation = "exif"

    files = FileFormats(
        "a picture",
        {
            "jpg": rb"\xff\xd8\xff",
            "jpeg": rb"\xff\xd8\xff",
            "png": rb"\x89PNG\r\n\x1a\n",
            "webp": rb"RIFF....WEBP",
        },
        convertible=("bmp", "gif", "tif", "tiff", "ppm"),
        columns=("image", "img"),
    )

    @classmethod
    def usual(cls) -> ImageConfig:
        """Pictures of any size."""
        return cls(size=224)

    def input_spec(self) -> InputSpec:
        """The size of the views."""
        return InputSpec(pixels=self.size)

    @model_validator(mode="after")
    def _check(self) -> ImageConfig:
        self._views()  # raises on settings that do not fit
        return self

    def build(self, name: str) -> ImageModality:
        """Build the modality with its name in the recipe."""
        extensions = self.extensions or ("jpg", "jpeg", "png", "webp")
        return ImageModality(name, extensions, self._views(), self.max_pixels, self.orientation)

    def _views(self) -> dict[str, View]:
        return build_views(self.views, lambda view: view.build(self.size), EvalView(self.size))


def exif_orientation(data: bytes) -> int:
    """EXIF orientation of a picture, 1 to 8; 1 (upright) without one. The pixels are not decoded."""
    if not any(mark in data for mark in (b"Exif", b"eXIf", b"EXIF")):  # of JPEG, PNG and WebP
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", *_FORMATS)) as image:
            number = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # a damaged header is no reason to lose the picture
        return UPRIGHT
    return number if isinstance(number, int) and 1 <= number <= 8 else UPRIGHT


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [H, W, C] as a viewer shows them, for an EXIF orientation of 1 to 8."""
    upright = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    upright = upright[::-1] if orientation in (3, 4, 7, 8) else upright
    upright = upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright
    return np.ascontiguousarray(upright)


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray:
    # Strict: Pillow accepts most JPEGs with flipped bits or a missing half, and fills the rest with grey.
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=True)
        _check_size(height, width, max_pixels)
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        raise DecodeError("undecodable", f"JPEG of {len(data)} bytes: {error}") from error
    return pixels


def _decode_other(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image.height, image.width, max_pixels)
                return _to_rgb(image)
    except DecodeError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(
            "undecodable", f"got {len(data)} bytes beginning with {data[:12]!r}, wanted a JPEG, PNG or WebP"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError("too_large", str(error)) from error
    except Exception as error:  # Pillow's readers raise many types of exceptions on foreign bytes
        raise DecodeError(
            "undecodable", f"{len(data)} bytes beginning with {data[:12]!r}: {error or type(error).__name__}"
        ) from error


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise DecodeError(
            "too_large", f"got {width} x {height} pixels, wanted at most {max_pixels} in all (`max_pixels`)"
        )


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip instead of scale
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
