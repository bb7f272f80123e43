"""The texts of evaluated samples, for tables in files: read again from the shards, when such a file is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmssl.core.errors import DataError
from mmssl.data.modalities.views.text_augment import first_words
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, Samples, load

LENGTH = 1000
"""Most characters of a text in a table: of longer ones the first, with … behind them."""


def texts_of(value: Any) -> tuple[str, ...] | None:
    """The sentences that a decoded value holds; None: it holds something else."""
    return value if isinstance(value, tuple) and all(isinstance(text, str) for text in value) else None


def values_again(samples: Samples, name: str, modality: Modality, numbers: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """Read a modality of samples again: each number, in its order and once, with the decoded value.

    Args:
        samples: an index of shards.
        name: of the modality. modality: it.
        numbers: of the samples, which have the modality.

    Raises:
        DataError: a sample cannot be read any more.
    """
    for number in dict.fromkeys(numbers):
        try:
            yield number, load(samples, number, {name: modality}).values[name]
        except BadSample as bad:
            raise DataError(f"{bad}: it could be read when it was evaluated") from bad


def sample_texts(
    samples: Samples, name: str, modality: Modality, numbers: Sequence[int], share: float = 1.0
) -> dict[int, list[str]]:
    """Number of a sample -> its texts in their order, each of at most `LENGTH` characters.

    Args:
        samples, name, modality, numbers: see `values_again`; the modality is of sentences.
        share: of the words of each text that were evaluated, the first ones.

    Raises:
        DataError: a sample cannot be read any more.
    """
    return {
        number: [shorten_text(text if share == 1 else first_words(text, share)) for text in texts_of(value) or ()]
        for number, value in values_again(samples, name, modality, numbers)
    }


def shorten_text(text: str) -> str:
    """A text of at most `LENGTH` characters."""
    return text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…"
