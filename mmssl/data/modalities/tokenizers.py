"""Tokenizers with one interface: texts in, int64 [n, T] out, padded on the right.

Picklable for workers: a copy loads its vocabulary on first use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mmssl.core.config import Config, LocalPath
from mmssl.core.errors import RecipeError, os_words
from mmssl.data.modalities.arrays import to_tensor
from mmssl.data.modalities.clip_vocabulary import Clean, clean_text, clip_vocabulary

if TYPE_CHECKING:
    from torch import Tensor


class Tokenizer(ABC):
    """Tokenizer: texts to token ids of a fixed length.

    Attributes:
        context_length: T, tokens of every text; longer texts are truncated on the right.
        vocab_size: ids are below this number.
        pad_id: padding id.
    """

    context_length: int
    vocab_size: int
    pad_id: int

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, T] int64 of n texts."""


class ClipTokenizer(Tokenizer):
    """CLIP's byte-pair encoding as open_clip has it: lower case, start 49406, end 49407, padded with 0.

    A truncated text still ends with the end token.
    """

    vocab_size = 49408
    pad_id = 0

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, T] int64 of n texts."""
        vocabulary = clip_vocabulary()
        rows = np.zeros((len(texts), self.context_length), dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = [vocabulary.start, *vocabulary.encode(text), vocabulary.end][: self.context_length]
            ids[-1] = vocabulary.end
            row[: len(ids)] = ids
        return to_tensor(rows)


class HfTokenizer(Tokenizer):
    """Tokenizer of transformers from a local folder, without downloads and without running code of the folder."""

    def __init__(self, path: Path, context_length: int, clean: Clean | None = None) -> None:
        self.path, self.clean = path, clean
        self.context_length = context_length
        self.vocab_size = len(self._encoder)
        self.pad_id = int(self._encoder.pad_token_id)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_encoder"}

    @cached_property
    def _encoder(self) -> Any:
        from transformers import AutoTokenizer

        if not self.path.is_dir():
            raise RecipeError(
                f"got tokenizer folder {self.path}, which does not exist, wanted one from transformers' `save_pretrained`"
            )
        try:
            encoder = AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(
                f"{self.path} holds no tokenizer that transformers can load: {os_words(error)}"
            ) from error
        if encoder.pad_token_id is None:
            raise RecipeError(
                f"the tokenizer in {self.path} has no padding token: set one (`pad_token`) and save it again"
            )
        encoder.padding_side = encoder.truncation_side = "right"
        return encoder

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, T] int64 of n texts."""
        if not texts:
            return to_tensor(np.zeros((0, self.context_length), dtype=np.int64))
        if self.clean is not None:
            texts = [clean_text(text, self.clean) for text in texts]
        ids = self._encoder(list(texts), padding="max_length", truncation=True, max_length=self.context_length)[
            "input_ids"
        ]
        return to_tensor(np.array(ids, dtype=np.int64).reshape(len(texts), self.context_length))


class ClipTokenizerConfig(Config):
    """CLIP's tokenizer.

    Attributes:
        context_length: maximum tokens of a text with start and end; longer texts are truncated.
    """

    kind: Literal["clip"] = "clip"
    context_length: int = Field(default=77, ge=3)

    def build(self) -> ClipTokenizer:
        """Build the tokenizer."""
        return ClipTokenizer(self.context_length)


class HfTokenizerConfig(Config):
    """A tokenizer of transformers.

    Attributes:
        path: local folder from `save_pretrained`.
        context_length: maximum tokens of a text with special tokens; longer texts are truncated.
        clean: what open_clip does to texts first. "whitespace": repairs characters and white space; "lower": lower case too;
            "canonicalize": lower case, without punctuation, as for SigLIP. None: nothing, as in transformers.
    """

    kind: Literal["hf"] = "hf"
    path: LocalPath
    context_length: int = Field(ge=3)
    clean: Clean | None = None

    def build(self) -> HfTokenizer:
        """Build and load the tokenizer.

        Raises:
            RecipeError: the folder is missing, or has no tokenizer with a padding token.
        """
        return HfTokenizer(self.path, self.context_length, self.clean)


TokenizerConfig = Annotated[ClipTokenizerConfig | HfTokenizerConfig, Field(discriminator="kind")]
