"""What a modality is: how its bytes are decoded, which views there are, and all that other parts of the house know of its values.

Nobody asks for the class of a modality. What operations, audits, evaluators and recipes need to know, it declares; the defaults fit
a modality that has no time axis, is neither seen nor heard, and of which nothing is counted. Each view comes from a record of
parameters, so that it can be logged and made again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import field_validator
from torch import Tensor

from mmssl.core.config import Config
from mmssl.core.encoder import InputSpec
from mmssl.core.errors import did_you_mean
from mmssl.core.sample import TokenIds
from mmssl.data.inspection import FileFormats, Inspection
from mmssl.data.kernel import Kernel, drop
from mmssl.data.timeline import Extent, Window


class DecodeError(Exception):
    """Bytes that do not hold what they should: a property of the data, the same on every attempt.

    Attributes:
        reason: a short name to count by: "undecodable", "missing", "empty", "duplicate", "too_large".
        detail: what was got and what was wanted.
        field: the member that it is about, where the one who decodes does not know it anyway.
    """

    def __init__(self, reason: str, detail: str, field: str = "") -> None:
        super().__init__(reason, detail, field)
        self.reason = reason
        self.detail = detail
        self.field = field

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class View(ABC):
    """One way to turn a decoded value into a tensor, in two halves: all chance in `draw`, all work in the call.

    Attributes:
        ragged: whether dimension 0 differs between samples; such views are padded in a batch, and the batch has their lengths.
        random_time: whether `draw` takes a part of the value's time that may lie anywhere in it.
    """

    ragged: ClassVar[bool] = False
    random_time: ClassVar[bool] = False

    @abstractmethod
    def draw(self, value: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Parameters of one view of `value`: plain numbers, strings and lists, so that they can be logged and replayed."""

    @abstractmethod
    def __call__(self, value: Any, parameters: Mapping[str, Any]) -> Tensor:
        """The view. A pure function of the value and the parameters."""

    @abstractmethod
    def blank(self) -> Tensor:
        """What stands in the row of a sample that lacks the modality: shape and dtype of the view, without content."""


class Modality(ABC):
    """The only place that knows an encoding: which members of a shard it reads, how to decode them, and which views there are.

    Objects are picklable and never change after they were built: workers get copies.

    Args:
        name: the modality's name in the recipe, and in every batch.
        extensions: members that it reads, in order of preference: of several in one sample the first is taken.
        views: kind of view -> view. "eval" is deterministic, and what evaluators see.

    Attributes:
        kernels: kind of synchronized operation -> what it does to values. A class has its own and those of its parents. Operations
            without a kernel are refused in recipes with this modality.
        visual: values are pictures, with a height and a width that operations on space cut and mirror.
        moving: values are frames with times (`frame_times`), at which windows of all modalities begin.
        audible: values are sounds, which may be moved in time a little without anybody noticing.
        language: values are sentences, and `tokenize` makes views of others, such as prompts.
        label: values are answers, such as the number of a class, and no content.
        relations: what the operation `negative` can break: of "shifted", "reversed", "channels", "caption", "order". The kernel
            measures which of them a value has.
        warnings: what an audit says of members that repeat earlier ones ("repeated") or have a flag of `inspect`: what follows
            their number.
        token_ids: which ids its views hold; None: they hold no ids.

    Raises:
        ValueError: no extension, or no view "eval".
    """

    kernels: ClassVar[Mapping[str, Kernel]] = {"dropout": Kernel(drop)}
    visual: ClassVar[bool] = False
    moving: ClassVar[bool] = False
    audible: ClassVar[bool] = False
    language: ClassVar[bool] = False
    label: ClassVar[bool] = False
    relations: frozenset[str] = frozenset()
    token_ids: TokenIds | None = None
    warnings: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declared = [vars(parent).get("kernels", {}) for parent in reversed(cls.__mro__)]
        cls.kernels = {kind: kernel for kernels in declared for kind, kernel in kernels.items()}

    def __init__(self, name: str, extensions: tuple[str, ...], views: Mapping[str, View]) -> None:
        if not extensions or "eval" not in views:
            raise ValueError(
                f"modality {name!r} needs an extension and a view 'eval', got {extensions} and {sorted(views)}"
            )
        self.name = name
        self.extensions = extensions
        self.views = dict(views)

    @abstractmethod
    def decode(self, data: bytes, extension: str, window: Window | None = None) -> Any:
        """Decode a member.

        Args:
            data: all bytes of the member.
            extension: its extension as written in the shard, in lower case.
            window: the part to decode, in seconds on the sample's timeline; None: all of it. Ignored without a time axis.

        Raises:
            DecodeError: the bytes do not hold what they should.
        """

    def from_input(self, value: Any) -> Any:
        """What `decode` gives, of an input from Python: the path of a file, its bytes, or what `from_value` takes.

        Raises:
            DecodeError: it does not hold what it should. OSError: the file cannot be read.
        """
        if isinstance(value, str | Path):
            return self.decode(Path(value).read_bytes(), Path(value).suffix[1:].lower())
        return self.decode(value, self.extensions[0]) if isinstance(value, bytes) else self.from_value(value)

    def from_value(self, value: Any) -> Any:
        """What `decode` gives, of an array, tensor or other object, checked like a file. By default no object is taken.

        Raises:
            DecodeError: it does not hold what it should.
        """
        raise DecodeError("type", f"got {type(value).__qualname__}, wanted the path of a file, or its bytes")

    def extent(self, data: bytes, extension: str) -> Extent | None:
        """What the header says about time; None: the modality has no time axis.

        Raises:
            DecodeError: as `decode`, as far as the header tells.
        """
        return None

    def length(self, value: Any) -> float | None:
        """Seconds of a decoded value; None: the modality has no time axis."""
        return None

    def frame_times(self, value: Any) -> np.ndarray | None:
        """When each frame of a decoded value is first shown, float64 [T] in seconds; None: it has no frames."""
        return None

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """The view "eval" of sentences, [n, ...]. Asked where `language`."""
        raise TypeError(f"modality {self.name!r} takes no sentences")

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """What audits and statistics of shards count of a member. By default: that it decodes.

        Raises:
            DecodeError: as `decode`.
        """
        self.decode(data, extension)
        return Inspection()

    def frame_start(self, data: bytes, moment: float) -> float | None:
        """When the frame began that is on screen at `moment`, in seconds; None: the modality has no frames.

        Args:
            data: all bytes of the member; nothing of it is decoded.
            moment: seconds on the sample's timeline.

        Raises:
            DecodeError: as `extent`.
        """
        return None

    def view(self, kind: str) -> View:
        """The view of that kind.

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
    """What every modality's config has.

    Attributes:
        extensions: members of a sample that hold the modality, in order of preference, written as WebDataset names them: without
            the first dot, in lower case (`jpg`, `caption.txt`). None: the modality's usual ones.
        files: formats that `mmssl shards pack` takes; None: it packs none.
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
        """Settings with which shards are audited and measured without a recipe; None: they are not."""
        return None

    def input_spec(self) -> InputSpec:
        """What the views are to an encoder, and to the checks of a recipe."""
        return InputSpec()

    @abstractmethod
    def build(self, name: str) -> Modality:
        """The modality under the name that the recipe gives it."""
