"""Pictures as `open_clip.image_transform` handles `PIL.Image.open(file)`: cropped and resized in the mode of the file, then RGB.

Palettes and 1-bit pictures are resized without a filter, transparent ones with premultiplied colours, CMYK ink by ink; 16-bit grey
is clipped at 255, alpha dropped, and an EXIF orientation ignored. open_clip trains on shards with pictures that webdataset has
converted to RGB before (`decode("pilrgb")`), and applies this to files: of tables, of ImageNet's folders, in its examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from mmssl.data.inspection import Inspection
from mmssl.data.kernel import Kernel
from mmssl.data.modalities.arrays import as_rgb
from mmssl.data.modalities.kernels.image import STILL_PICTURES
from mmssl.data.modalities.pictures import ANIMATED, TRANSPARENT, PictureDecoder, is_animated, load_pixels
from mmssl.data.modality import Modality, View
from mmssl.data.timeline import Window


@dataclass(frozen=True)
class StoredPicture:
    """A picture in the mode of its file."""

    image: Image.Image

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and number of channels of its RGB pixels."""
        return self.image.height, self.image.width, 3

    def resized(self, box: list[int], size: tuple[int, int], interpolation: str) -> np.ndarray:
        """RGB pixels uint8 [*size, 3] of a box [top, left, height, width], as torchvision's `resized_crop` makes them."""
        top, left, height, width = box
        crop = self.image.crop((left, top, left + width, top + height))
        made = crop.resize((size[1], size[0]), Image.Resampling[interpolation.upper()])
        return _rgb(made)


class OpenClipImageModality(Modality):
    """Pictures as open_clip handles files: `StoredPicture` values, whose views are converted to RGB last.

    Operations of `data.synchronized` that change pixels have no kernel here, and are refused.

    Args:
        decoder: opens files, and limits their size; Pillow decodes them, JPEG files too, which may hide damage.
    """

    kernels: ClassVar[Mapping[str, Kernel]] = STILL_PICTURES
    visual = True
    warnings: ClassVar[Mapping[str, str]] = {
        "repeated": "images repeat earlier ones: equal images are false negatives, or leak between splits",
        ANIMATED: "images are animated: their first frame is used",
        TRANSPARENT: "images have alpha, which is dropped after resizing, as in open_clip",
    }

    def __init__(
        self, name: str, extensions: tuple[str, ...], views: Mapping[str, View], decoder: PictureDecoder
    ) -> None:
        super().__init__(name, extensions, views)
        self.decoder = decoder

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> StoredPicture:
        """Decode a file, the format of which is detected from the bytes.

        Raises:
            DecodeError: "undecodable", "too_large". DataError: the decoder of the format is not installed.
        """
        with self.decoder.opened(data) as image:
            image.load()
            return StoredPicture(image)

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Width and height as stored, animation and alpha, the file to find duplicates, and the RGB pixels."""
        with self.decoder.opened(data) as image:
            flags = [ANIMATED] * is_animated(image) + [TRANSPARENT] * image.has_transparency_data
            figures = {"width": [image.width], "height": [image.height]}
            pixels = _rgb(image)
        return Inspection(figures, flags=tuple(flags), items=(("an image", data),), channels=pixels)

    def from_value(self, value: Any) -> StoredPicture:
        """A PIL picture as it is; an array or tensor as RGB.

        Raises:
            DecodeError: "type", "shape", "empty", "not_finite", "range", "too_large".
        """
        if isinstance(value, Image.Image):
            self.decoder.check_size(value.height, value.width)
            load_pixels(value)
            return StoredPicture(value)
        pixels = as_rgb(value)
        self.decoder.check_size(*pixels.shape[:2])
        return StoredPicture(Image.fromarray(pixels))


def _rgb(image: Image.Image) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")  # alpha is dropped, as the rule says
        return np.array(image.convert("RGB"))
