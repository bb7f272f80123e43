"""Base classes of modalities: decoding of bytes, views (tensors) of decoded values, and properties for the rest of the package.

Nobody asks for the class of a modality: it declares what operations, audits, evaluators and recipes need to know. The defaults fit
a modality without a time axis that is neither visual nor audible. Each view is made from recorded parameters, to be made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
from pydantic import field_validator

from mmssl.core.config import Config
from mmssl.core.errors import did_you_mean
from mmssl.core.input_spec import InputSpec
from mmssl.core.sample import TokenIds
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.kernel import Kernel, drop
from mmssl.data.timeline import Extent, Window

if TYPE_CHECKING:
    from torch import Tensor

    from mmssl.core.encoder import Encoder
    from mmssl.data.corruption import Corruptions

C = TypeVar("C")


class DecodeError(Exception):
    """Bytes that cannot be decoded: a permanent property of the data, so there are no retries.

    Attributes:
        reason: a short name to count by: "undecodable", "missing", "empty", "duplicate", "too_large".
        detail, field: got and wanted, in words; extension of the member, if the caller cannot know it.
    """

    def __init__(self, reason: str, detail: str, field: str = "") -> None:
        super().__init__(reason, detail, field)
        self.reason, self.detail, self.field = reason, detail, field

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class View(ABC):
    """Transform of a decoded value to a tensor, in two steps: `draw` has all randomness, the call is deterministic.

    Attributes:
        ragged: whether dimension 0 differs between samples; such views are padded in a batch, and the batch has their lengths.
        random_time: whether `draw` chooses a random window of the value's time.
        trimmable: whether the view is a text of token ids [T] padded at its end, which `Encoder.trim` may cut off.
        pixels: height and width of a view that shows pictures; None: it shows none.
        grid: rows and columns, after times if there are several, of the tokens that a view masks; None: it knows no grid.
        draws_as: kind of view whose parameters this one draws too, number by number; None: it draws by itself.
        partner: whether it mixes in another sample: its values are pairs of a value and a `Partner`, or None if there is none.
        on_device: whether the loader makes a part of the view, and `finish` the rest, on the training device.
    """

    ragged: ClassVar[bool] = False
    random_time: ClassVar[bool] = False
    trimmable: ClassVar[bool] = False
    partner: ClassVar[bool] = False
    pixels: int | None = None
    grid: tuple[int, ...] | None = None
    draws_as: str | None = None
    on_device: bool = False

    @abstractmethod
    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Draw the parameters of one view of `value`: numbers, strings and lists, so that they can be logged and replayed."""

    @abstractmethod
    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """Make the view. A pure function of the value and the parameters."""

    def finish(self, x: Tensor, parameters: Sequence[Mapping[str, Any] | None], encoder: Encoder) -> Tensor:
        """Finish a batch of views [B, ...] for their encoder, if `on_device`; `parameters` of absent samples are None."""
        return x

    def resized(self, pixels: int) -> View:
        """The same view, of another height and width.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"got {pixels} pixels, and views of this modality have no height and width to change")

    def lasting(self, share: float) -> View:
        """The same view, of a share of its length in time, at the same rate.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"got a length of {share:g}, and views of this modality have no length to change")

    @abstractmethod
    def blank(self) -> Tensor:
        """Placeholder for the row of a sample that lacks the modality: shape and dtype of the view, without content."""

    def companions(self, kind: str) -> Mapping[str, View]:
        """Further kinds of views, of what this view of `kind` draws. By default there are none."""
        return {}


class Modality(ABC):
    """A modality: members of a shard, their decoder, views and synchronized kernels; immutable, and picklable: workers get copies.

    Args:
        name: the modality's name in the recipe, and in every batch.
        extensions: members that it reads, in order of preference: the first one in a sample is used.
        views: kind of view -> view; their companions are added. "eval" is the deterministic view for evaluators.

    Attributes:
        kernels: kind of synchronized operation -> kernel. A class adds its kernels to those of its parents. Recipes with this
            modality refuse operations without a kernel.
        visual: values are pictures, with a height and a width for crops and flips.
        moving: values are frames with times (`frame_times`); windows of all modalities begin at a frame.
        audible: values are sounds, which `time_crop` may shift a little in time.
        language: values are sentences, and `tokenize` makes views of other sentences, such as prompts.
        label: values are targets, such as class numbers, not inputs.
        relations: those of "shifted", "reversed", "channels", "caption", "order" that `negative` can break; kernels measure them.
        warnings: flag of `inspect`, or "repeated" for duplicates -> text of an audit's warning after the number of members.
        corruptions: of its view "eval", which robustness is measured with.
        token_ids, values_per_second: of its views; None: views have no token ids, and no rate.

    Raises:
        ValueError: no extension, or no "eval" view.
    """

    kernels: ClassVar[Mapping[str, Kernel]] = {"dropout": Kernel(drop)}
    visual: ClassVar[bool] = False
    moving: ClassVar[bool] = False
    audible: ClassVar[bool] = False
    language: ClassVar[bool] = False
    label: ClassVar[bool] = False
    relations: frozenset[str] = frozenset()
    corruptions: Corruptions = {}  # noqa: RUF012 - nobody changes it
    token_ids: TokenIds | None = None
    values_per_second: float | None = None
    warnings: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declared = [vars(parent).get("kernels", {}) for parent in reversed(cls.__mro__)]
        cls.kernels = {kind: kernel for kernels in declared for kind, kernel in kernels.items()}

    def __init__(self, name: str, extensions: tuple[str, ...], views: Mapping[str, View]) -> None:
        if not extensions or "eval" not in views:
            raise ValueError(
                f"got extensions {extensions} and views {sorted(views)} for modality {name!r}, wanted an extension and "
                "a view 'eval'"
            )
        self.name = name
        self.extensions = extensions
        self.views = dict(views)
        for kind, view in views.items():
            self.views |= view.companions(kind)

    @abstractmethod
    def decode(self, data: bytes, extension: str, window: Window | None = None) -> Any:
        """Decode a member.

        Args:
            data: all bytes of the member.
            extension: its extension as written in the shard, in lower case.
            window: the part to decode, in seconds on the sample's timeline; None: all of it. Ignored without a time axis.

        Raises:
            DecodeError: the bytes do not hold what they should. DataError: the decoder of their format is not installed.
        """

    def reading(self, formats: Mapping[str, str]) -> Modality:
        """The modality as it reads members of these formats; by default, there is one format of each extension.

        Args:
            formats: extension -> name of its format, as the manifest of a folder of shards says; empty: nothing says.

        Raises:
            ValueError: the settings contradict it; begins with the key.
        """
        return self

    def check_members(self, members: Iterable[tuple[str, bytes]]) -> None:  # noqa: B027 - most have nothing to ask
        """Look at a few members of a folder of shards before a run begins. By default none is read.

        Args:
            members: (extension, bytes) of some samples.

        Raises:
            ValueError: they may be meant otherwise than the settings read them, and nothing says how; begins with the key.
        """

    def from_input(self, value: Any) -> Any:
        """Decode an input from Python: the path of a file, its bytes, or a value for `from_value`.

        Raises:
            DecodeError: the input does not decode. OSError: the file cannot be read.
        """
        if isinstance(value, str | Path):
            return self.decode(Path(value).read_bytes(), Path(value).suffix[1:].lower())
        return self.decode(value, self.extensions[0]) if isinstance(value, bytes) else self.from_value(value)

    def from_value(self, value: Any) -> Any:
        """Check an array, tensor or other object, and convert it to a decoded value. By default none is accepted.

        Raises:
            DecodeError: another type, shape or range than wanted.
        """
        raise DecodeError("type", f"got {type(value).__qualname__}, wanted the path of a file, or its bytes")

    def extent(self, data: bytes, extension: str) -> Extent | None:
        """Start and length by the header; None: the modality has no time axis.

        Raises:
            DecodeError: as `decode`, as far as the header tells.
        """
        return None

    def length(self, value: Any) -> float | None:
        """Duration of a decoded value in seconds; None: the modality has no time axis."""
        return None

    def frame_times(self, value: Any) -> np.ndarray | None:
        """Time at which each frame of a decoded value is first shown, float64 [T] in seconds; None: it has no frames."""
        return None

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokenize sentences like the view "eval": [n, ...]. Only if `language`."""
        raise TypeError(f"modality {self.name!r} has no tokenizer, wanted a modality with `language`")

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Inspect a member for audits and statistics. By default only whether it decodes.

        Raises:
            DecodeError: as `decode`.
        """
        self.decode(data, extension)
        return Inspection()

    def frame_start(self, data: bytes, moment: float) -> float | None:
        """Start time in seconds of the frame on screen at `moment`; None: the modality has no frames.

        Args:
            data: all bytes of the member; they are not decoded.
            moment: seconds on the sample's timeline.

        Raises:
            DecodeError: as `extent`.
        """
        return None

    def view(self, kind: str) -> View:
        """Get the view of a kind.

        Raises:
            ValueError: there is none.
        """
        if kind not in self.views:
            raise ValueError(
                f"modality {self.name!r} has no view {kind!r}{did_you_mean(kind, self.views)}: it has {sorted(self.views)}; "
                "an objective or evaluator needs it, so add it to the modality's `views` in the recipe"
            )
        return self.views[kind]


class ModalityConfig(Config, ABC):
    """Base class of the configs of modalities.

    Attributes:
        extensions: extensions of the modality's members in order of preference, in WebDataset's spelling: without the first dot, in
            lower case (`jpg`, `caption.txt`). None: the modality's usual ones.
        files: file formats for `mmssl shards pack`; None: it packs none.
    """

    files: ClassVar[FileFormats | None] = None

    extensions: tuple[str, ...] | None = None

    @field_validator("extensions")
    @classmethod
    def _plain(cls, extensions: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for extension in extensions or ():
            if not extension or extension != extension.lower().strip().lstrip("."):
                raise ValueError(
                    f"got the extension {extension!r}, wanted lower case without a leading dot, as in 'jpg'"
                )
        if extensions == ():
            raise ValueError("got no extension: name at least one, or leave `extensions` out")
        return extensions

    @classmethod
    def usual(cls) -> Self | None:
        """Settings for audits and statistics without a recipe; None: not included there."""
        return None

    def input_spec(self) -> InputSpec:
        """Input specification of the views, for encoders and the checks of a recipe."""
        return InputSpec()

    @abstractmethod
    def build(self, name: str) -> Modality:
        """Build the modality with its name in the recipe."""


def build_views(configs: Mapping[str, C], build: Callable[[C], View], evaluation: View) -> dict[str, View]:
    """Build the views of a modality: those of its config, and "eval".

    Args:
        configs, build: kind of view -> its config, and what builds one of them.
        evaluation: the view "eval".

    Raises:
        ValueError: a view "eval" among the configs, or settings that do not fit; names the view.
    """
    if "eval" in configs:
        raise ValueError("got a view 'eval', which is reserved for evaluators: give the view another name")
    views: dict[str, View] = {}
    for kind, config in configs.items():
        try:
            views[kind] = build(config)
        except ValueError as error:
            raise ValueError(f"view {kind!r}: {error}") from error
    return {**views, "eval": evaluation}
