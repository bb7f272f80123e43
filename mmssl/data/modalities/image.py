"""Image modality: picture files to uint8 pixels, decoded once for any number of views; `pictures` has the rules.

Views are uint8: normalisation belongs to the encoder's `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from mmssl.core.input_spec import InputSpec
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.modalities.arrays import as_rgb
from mmssl.data.modalities.corruptions.pictures import PICTURES as CORRUPTIONS
from mmssl.data.modalities.kernels.image import PICTURES
from mmssl.data.modalities.masks.image import (
    ImageBlocksConfig,
    ImageInverseBlocksConfig,
    ImageJepaConfig,
    ImageOrderConfig,
)
from mmssl.data.modalities.open_clip_pictures import OpenClipImageModality
from mmssl.data.modalities.orientation import Orientation
from mmssl.data.modalities.picture_check import check_picture
from mmssl.data.modalities.pictures import (
    ANIMATED,
    DAMAGED,
    DEEP,
    SIGNATURES,
    TRANSPARENT,
    Alpha,
    Depth,
    OnDamage,
    PictureDecoder,
)
from mmssl.data.modalities.views.choice import ChoiceConfig
from mmssl.data.modalities.views.image import (
    CropConfig,
    EvalView,
    Fit,
    Interpolation,
    ResizedCropConfig,
    SimClrViewConfig,
)
from mmssl.data.modalities.views.rand_augment import RandAugmentConfig
from mmssl.data.modality import Modality, ModalityConfig, View, build_views
from mmssl.data.timeline import Window

ImageViewConfig = Annotated[
    ResizedCropConfig
    | SimClrViewConfig
    | RandAugmentConfig
    | ImageOrderConfig
    | ImageBlocksConfig
    | ImageInverseBlocksConfig
    | ImageJepaConfig
    | ChoiceConfig,
    Field(discriminator="kind"),
]


class ImageModality(Modality):
    """Images: uint8 arrays [H, W, 3].

    Args:
        decoder: of files and PIL pictures.
    """

    kernels = PICTURES
    corruptions = CORRUPTIONS
    visual = True
    warnings: ClassVar[Mapping[str, str]] = {
        "repeated": "images repeat earlier ones: equal images are false negatives, or leak between splits",
        ANIMATED: "images are animated: their first frame is used",
        TRANSPARENT: "images have alpha: `modalities.image.alpha` says what becomes of it; dropped, colours behind it show",
        DEEP: "images have more than 8 bits, and are converted as `modalities.image.depth` says",
        DAMAGED: "images are damaged, and decoded as far as they go (`modalities.image.on_damage`)",
    }

    def __init__(
        self, name: str, extensions: tuple[str, ...], views: Mapping[str, View], decoder: PictureDecoder
    ) -> None:
        super().__init__(name, extensions, views)
        self.decoder = decoder

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> np.ndarray:
        """Decode to pixels [H, W, 3] uint8. The format is detected from the bytes, not from the extension.

        Raises:
            DecodeError, DataError: as `PictureDecoder.decode`; JPEG decoding is strict.
        """
        return self.decoder.decode(data).pixels

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Width and height as decoded, what the rules changed, the file to find duplicates, and the pixels."""
        picture = self.decoder.decode(data)
        height, width, _ = picture.pixels.shape
        figures = {"width": [width], "height": [height]}
        return Inspection(figures, flags=picture.flags, items=(("an image", data),), channels=picture.pixels)

    def from_value(self, value: Any) -> np.ndarray:
        """Pixels [H, W, 3] uint8 of a PIL picture, or of an array or tensor [H, W, 3], [H, W] or [H, W, 1].

        PIL pictures are converted like files. Arrays are uint8, or floats in [0, 1].

        Raises:
            DecodeError: "type", "shape", "empty", "not_finite", "range", "too_large"; for PIL as `PictureDecoder.convert`.
        """
        if isinstance(value, Image.Image):
            return self.decoder.convert(value).pixels
        pixels = as_rgb(value)
        self.decoder.check_size(*pixels.shape[:2])
        return pixels


class ImageConfig(ModalityConfig):
    """Image settings: size and views.

    Attributes:
        size: height and width of views in pixels; a view may have a `size` of its own.
        views: kind of view that an objective needs -> its settings. The view "eval" always exists; see `fit`.
        fit: how the view "eval" becomes a square. "crop": shortest side resized, centre crop, as in CLIP; "squash": both sides
            resized, as in SigLIP.
        interpolation: filter of the resizing of the view "eval", with antialiasing.
        max_pixels: pictures with more pixels are refused before decoding.
        orientation: "exif": pictures are turned as their EXIF orientation says, as viewers show them; "stored": they stay as they
            lie in the file, as in open_clip, where photographs of phones lie on their side. HEIC is always turned.
        depth: values of more than 8 bits. "scale": 16 bits from 0 to 65535, floats from 0 to 1; files that use 14 bits or fewer
            would be black, and are refused. "window": from the least to the largest value of the file. "refuse": an error.
        alpha: "mask": alpha is dropped without blending, as in open_clip; a fourth channel that is no mask (over half of its pixels
            half transparent, at more than 32 levels), such as near infrared, is refused. "drop": dropped whatever it is. "white":
            blended with white. "refuse": an error unless opaque.
        on_damage: "refuse": JPEG files with any damage are refused; "show": they are decoded as far as they go, as browsers show
            them.
        decode: "full": as they are; "scaled": JPEG files at 1/2, 1/4 or 1/8 of their size (libjpeg's scaling), the smallest from
            which no crop of a view has to be enlarged. Faster for large files, and other pixels.
        rules: "mmssl": pictures become RGB by the keys above, then views. "open_clip": Pillow crops and resizes them in the mode of
            the file, then converts to RGB, bit for bit as `open_clip.image_transform` of `PIL.Image.open(file)` (except pictures
            more than eight times as long as wide, which lose their ends). Slower; damage that Pillow overlooks is not found.
    """

    kind: Literal["image"] = "image"
    size: int = Field(ge=8)
    views: dict[str, ImageViewConfig] = Field(default={"crop": ResizedCropConfig()})
    fit: Fit = "crop"
    interpolation: Interpolation = "bicubic"
    max_pixels: int = Field(default=25_000_000, ge=1)
    orientation: Orientation = "exif"
    depth: Depth = "scale"
    alpha: Alpha = "mask"
    on_damage: OnDamage = "refuse"
    decode: Literal["full", "scaled"] = "full"
    rules: Literal["mmssl", "open_clip"] = "mmssl"

    files = FileFormats(
        "a picture",
        SIGNATURES,
        convertible=("bmp", "tif", "tiff", "ppm"),
        columns=("image", "img"),
        verify=check_picture,
    )

    @classmethod
    def usual(cls) -> ImageConfig:
        """Pictures of any size."""
        return cls(size=224)

    def input_spec(self) -> InputSpec:
        """Size and channels of the views."""
        return InputSpec(pixels=self.size, channels=3)

    @model_validator(mode="after")
    def _check(self) -> ImageConfig:
        self._views()  # raises on settings that do not fit
        keys = ("orientation", "depth", "alpha", "on_damage", "decode")
        changed = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
        if self.rules == "open_clip" and changed:
            raise ValueError(
                f"got rules 'open_clip' and {changed[0]} {getattr(self, changed[0])!r}, which has no effect then: remove one"
            )
        return self

    def build(self, name: str) -> ImageModality | OpenClipImageModality:
        """Build the modality with its name in the recipe."""
        extensions = self.extensions or tuple(SIGNATURES)
        if self.rules == "open_clip":
            return OpenClipImageModality(name, extensions, self._views(), PictureDecoder(self.max_pixels))
        crops = [view.least_side(self.size) for view in self.views.values() if isinstance(view, CropConfig)]
        least_side = max([self.size, *crops]) if self.decode == "scaled" else None
        decoder = PictureDecoder(
            self.max_pixels, self.orientation, self.depth, self.alpha, self.on_damage, least_side=least_side
        )
        return ImageModality(name, extensions, self._views(), decoder)

    def _views(self) -> dict[str, View]:
        return build_views(
            self.views, lambda view: view.build(self.size), EvalView(self.size, self.fit, self.interpolation)
        )
