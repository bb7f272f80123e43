"""Text modality: caption files to tuples of captions, captions to token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from mmssl.core.input_spec import InputSpec
from mmssl.core.sample import TokenIds
from mmssl.data.inspection import Inspection
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.clip_vocabulary import clip_vocabulary
from mmssl.data.modalities.corruptions.sentences import SENTENCES
from mmssl.data.modalities.kernels.text import CAPTIONS
from mmssl.data.modalities.tokenizers import ClipTokenizerConfig, Tokenizer, TokenizerConfig
from mmssl.data.modalities.views.choice import ChoiceConfig
from mmssl.data.modalities.views.hard_negatives import HardNegativeViewConfig
from mmssl.data.modalities.views.text import (
    AllTokensView,
    PartsViewConfig,
    TokenOrderViewConfig,
    TokensView,
    TokensViewConfig,
)
from mmssl.data.modalities.views.text_augment import WordOperation
from mmssl.data.modality import DecodeError, Modality, ModalityConfig, View, build_views
from mmssl.data.timeline import Window

if TYPE_CHECKING:
    from torch import Tensor

SEVERAL = 0.1
"""Share of texts with several lines above which it is asked whether each line is a caption."""
ROWS = "rows"
"""Format of the texts of rows that lie in no shard: each line is one of the captions that the row gives, whatever files hold."""
TEXTS = {"whole": "one caption a file", "lines": "one caption a line", ROWS: "the captions of a row, one a line"}
"""Format of text files -> what a manifest says with its name."""
READS = {"auto": ("whole", "lines", ROWS), "whole": ("whole", ROWS), "lines": ("lines", "whole", ROWS)}
"""Setting -> formats of text files that it reads rightly: mmssl writes no caption on several lines."""

TextViewConfig = Annotated[
    TokensViewConfig | TokenOrderViewConfig | PartsViewConfig | HardNegativeViewConfig | ChoiceConfig,
    Field(discriminator="kind"),
]
CaptionFormat = Literal["auto", "whole", "lines", "list"] | dict[str, Annotated[float, Field(gt=0)]]


class TextModality(Modality):
    """Text: captions of a sample, as `Captions`.

    Args:
        captions: format of members; see `TextConfig`.
        negatives: key of false captions in JSON members; see `TextConfig`.
        tokenizer: converts captions to token ids.
        views: kind of view -> view; see `Modality`.
    """

    kernels = CAPTIONS
    corruptions = SENTENCES
    language = True
    relations = frozenset({"caption", "order"})

    def __init__(
        self,
        name: str,
        extensions: tuple[str, ...],
        captions: CaptionFormat,
        tokenizer: Tokenizer,
        views: Mapping[str, View],
        negatives: str | None = None,
    ) -> None:
        super().__init__(name, extensions, views)
        self.captions = captions
        self.negatives = negatives
        self.formats: Mapping[str, str] = {}
        self.tokenizer = tokenizer
        self.token_ids = TokenIds(tokenizer.context_length, tokenizer.vocab_size)

    def reading(self, formats: Mapping[str, str]) -> TextModality:
        """The modality for text files of these formats (see `TEXTS`).

        Raises:
            ValueError: `captions` reads them otherwise, or a format is unknown.
        """
        own = {extension: formats[extension] for extension in self.extensions if extension in formats}
        if own == self.formats:
            return self
        for extension, found in own.items():
            if found not in READS.get(str(self.captions), ()):
                raise ValueError(
                    f"captions: got {self.captions!r}, but the manifest of the shards says {found!r} of .{extension} "
                    f"({TEXTS.get(found, 'unknown here')}): set it to auto, which follows the manifest"
                )
        other = copy(self)
        other.formats = own
        return other

    def check_members(self, members: Iterable[tuple[str, bytes]]) -> None:
        """Refuse text files of several lines that nothing says the meaning of."""
        if self.captions != "auto":
            return
        unsaid = [data.strip() for extension, data in members if extension not in self.formats]
        several = sum(b"\n" in data for data in unsaid)
        if several > SEVERAL * len(unsaid):
            raise ValueError(
                f"captions: {several} of the first {len(unsaid)} texts have several lines, and no manifest says whether each "
                "line is a caption: set it to lines, or to whole"
            )

    def decode(self, data: bytes, extension: str, window: Window | None = None) -> Captions:
        """Decode all captions of a member.

        Raises:
            DecodeError: "undecodable" (not UTF-8, not the expected JSON), "missing" (no caption).
        """
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DecodeError("undecodable", f".{extension} is not UTF-8: {error}") from error
        said = self.formats.get(extension, "whole")
        form = said if self.captions == "auto" or said == ROWS else self.captions
        if form == "whole":
            captions = Captions([text.strip()] if text.strip() else [])
        elif form in ("lines", ROWS):
            captions = Captions([line.strip() for line in text.splitlines() if line.strip()])
        else:
            captions = _from_json(text, extension, self.captions, self.negatives)
        if not captions:
            raise DecodeError("missing", f".{extension} holds no caption")
        return captions

    def from_input(self, value: Any) -> Captions:
        """One caption: a string is taken literally; a `Path` or bytes are decoded.

        Raises:
            DecodeError: "missing" (only white space), "several" (captions), or as `decode`. OSError: the file cannot be read.
        """
        if isinstance(value, str):
            if not value.strip():
                raise DecodeError("missing", f"got {value!r}, wanted a caption")
            return Captions([value])
        captions: Captions = super().from_input(value)
        if len(captions) > 1:
            raise DecodeError("several", f"got {len(captions)} captions, wanted one: give each as a string")
        return captions

    def from_value(self, value: Any) -> Captions:
        """Refuse all objects: `from_input` accepts strings."""
        raise DecodeError("type", f"got {type(value).__qualname__}, wanted a string, or the Path or bytes of a file")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokenize n texts, such as prompts: ids [n, T] int64."""
        return self.tokenizer(texts)

    def inspect(self, data: bytes, extension: str) -> Inspection:
        """Number of words and of CLIP tokens (with start and end) of each caption; the captions to find duplicates."""
        captions = self.decode(data, extension)
        figures = {
            "words": [len(one.split()) for one in captions],
            "tokens": [2 + len(clip_vocabulary().encode(one)) for one in captions],
        }
        items = tuple((repr(one[:60]), one.encode()) for one in captions)
        return Inspection(figures, flags=("several captions",) if len(captions) > 1 else (), items=items)


class TextConfig(ModalityConfig):
    """Text settings: tokenizer, format of captions and their augmentation.

    Attributes:
        tokenizer: the tokenizer.
        captions: "whole": a member is one caption; "lines": each line is a caption; "auto": one of the two, as the manifest of
            the shards says, and "whole" without a manifest (then many texts of several lines are refused); "list": a JSON list
            of captions; or {key: weight}: a JSON object with these keys (each a caption or a list of captions; missing keys are
            skipped), drawn in proportion to their weights.
        negatives: key of the JSON object with false captions of the sample (one or a list; may be missing), for views of kind
            hard_negative; for captions of the form {key: weight}.
        augment: augmentations of the caption in the view "tokens", in this order: swap, delete or repeat words, take a span, or
            permute sentences.
        views: further kinds of views that an objective needs -> their settings. Two views always exist: "tokens", a caption drawn
            by weight, and "eval", all captions as they are.
        extensions: default `txt`, or `json` for JSON formats.
    """

    kind: Literal["text"] = "text"
    tokenizer: TokenizerConfig = ClipTokenizerConfig()
    captions: CaptionFormat = "auto"
    negatives: str | None = None
    augment: tuple[WordOperation, ...] = ()
    views: dict[str, TextViewConfig] = Field(default={})

    @classmethod
    def usual(cls) -> TextConfig:
        """Each line is a caption."""
        return cls(captions="lines")

    def input_spec(self) -> InputSpec:
        """Vocabulary and context length of the tokenizer."""
        return InputSpec(tokenizer=self.tokenizer.kind)

    @field_validator("captions")
    @classmethod
    def _some(cls, captions: CaptionFormat) -> CaptionFormat:
        if captions == {}:
            raise ValueError(
                "got no key, wanted {key: weight} with at least one, or 'auto', 'whole', 'lines' or 'list'"
            )
        return captions

    @model_validator(mode="after")
    def _given_negatives(self) -> Self:
        if self.negatives is not None and not isinstance(self.captions, dict):
            raise ValueError(
                f"negatives: got {self.negatives!r} with captions: {self.captions}, wanted captions of the form {{key: weight}}: "
                "false captions are read from the same JSON object"
            )
        given = [name for name, view in self.views.items() if "given" in getattr(view, "falsehoods", ())]
        if given and self.negatives is None:
            raise ValueError(
                f"views.{given[0]}.falsehoods: got given, and no key of false captions: set `negatives`, or remove it"
            )
        return self

    @field_validator("views")
    @classmethod
    def _free(cls, views: dict[str, TextViewConfig]) -> dict[str, TextViewConfig]:
        for name in views:
            if name in ("tokens", "eval"):
                raise ValueError(
                    f"got a view {name!r}, which is reserved and always exists: give the view another name, or augment the view "
                    "'tokens' by `augment`"
                )
        return views

    def build(self, name: str) -> TextModality:
        """Build the modality with its name in the recipe."""
        usual = ("txt",) if self.captions in (*READS,) else ("json",)
        tokenizer = self.tokenizer.build()
        tokens = TokensView(tokenizer, self.augment)
        views = build_views(self.views, lambda view: view.build(tokens), AllTokensView(tokenizer))
        return TextModality(
            name, self.extensions or usual, self.captions, tokenizer, {"tokens": tokens, **views}, self.negatives
        )


def _from_json(text: str, extension: str, captions: CaptionFormat, negatives: str | None) -> Captions:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DecodeError("undecodable", f".{extension} is not JSON: {error}") from error
    if captions == "list":
        if not isinstance(value, list):
            raise DecodeError(
                "undecodable", f".{extension} holds JSON of type {type(value).__name__}, wanted a list of captions"
            )
        return Captions(_texts(value, extension))
    assert isinstance(captions, dict)
    if not isinstance(value, dict):
        raise DecodeError(
            "undecodable",
            f".{extension} holds JSON of type {type(value).__name__}, wanted an object with {sorted(captions)}",
        )
    texts: list[str] = []
    weights: list[float] = []
    for key, weight in captions.items():
        found = _texts(_listed(value.get(key)), extension)
        texts += found
        weights += [weight / len(found) for _ in found]  # the captions of a key share its weight
    return Captions(texts, weights, () if negatives is None else _texts(_listed(value.get(negatives)), extension))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _texts(values: list[Any], extension: str) -> list[str]:
    """The captions among JSON values, without null and blanks."""
    for value in values:
        if not isinstance(value, str | None):
            raise DecodeError("undecodable", f".{extension} has {str(value)[:40]!r} as a caption, wanted a string")
    return [value.strip() for value in values if value and value.strip()]
