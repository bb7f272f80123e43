"""CLIP's byte-pair encoding, from the vocabulary that open_clip ships. Equal to open_clip's tokenizer, which imports torch."""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
import string
from functools import cache
from pathlib import Path
from typing import Literal

from mmssl.core.errors import RecipeError

Clean = Literal["whitespace", "lower", "canonicalize"]

START, END = "<start_of_text>", "<end_of_text>"
_MERGES = 49152 - 256 - 2  # lines of the file that are used, behind its first
_WORD_END = "</w>"
_WORDS = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
_PLAIN = re.compile(r"[ !-%'-~]*").fullmatch  # ASCII without "&": what ftfy and HTML unescaping leave unchanged
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class ClipVocabulary:
    """Texts to token ids, without start and end. Words are cached, up to a number."""

    MAX_CACHED_WORDS = 500_000

    def __init__(self) -> None:
        import regex  # knows classes of letters
        from tokenizers.models import BPE

        lines = gzip.decompress(_file().read_bytes()).decode().split("\n")[1 : _MERGES + 1]
        merges = [(left, right) for left, right in (line.split() for line in lines)]
        self._symbols = _byte_symbols()
        symbols = list(self._symbols.values())
        tokens = [*symbols, *(symbol + _WORD_END for symbol in symbols), *map("".join, merges), START, END]
        ids = {token: number for number, token in enumerate(tokens)}
        self.start, self.end, self.size = ids[START], ids[END], len(ids)
        self._bpe = BPE(ids, merges, end_of_word_suffix=_WORD_END)
        self._words = regex.compile(_WORDS, regex.IGNORECASE)
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text: repaired (ftfy, HTML entities), in lower case, with single blanks."""
        if not _PLAIN(text):
            import ftfy  # slow to import, and few captions need it

            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        if len(self._known) > self.MAX_CACHED_WORDS:
            self._known.clear()
        ids: list[int] = []
        for word in self._words.findall(" ".join(text.split()).lower()):
            known = self._known.get(word)
            if known is None:
                known = self._known[word] = self._encode_word(word)
            ids += known
        return ids

    def _encode_word(self, word: str) -> list[int]:
        if word in (START, END):
            return [self.start if word == START else self.end]
        return [token.id for token in self._bpe.tokenize("".join(self._symbols[byte] for byte in word.encode()))]


@cache
def clip_vocabulary() -> ClipVocabulary:
    """The vocabulary, made once in a process.

    Raises:
        RecipeError: open_clip is not installed.
    """
    return ClipVocabulary()


def clean_text(text: str, kind: Clean) -> str:
    """What open_clip's tokenizers do to a text first; see `HfTokenizerConfig.clean`."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if kind == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    text = " ".join(text.split())
    return text if kind == "whitespace" else text.lower()


def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in the order of the vocabulary (OpenAI's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _file() -> Path:
    package = importlib.util.find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    if not folders:
        raise RecipeError("CLIP's tokenizer needs the package open_clip_torch: pip install open_clip_torch")
    return Path(folders[0]) / "bpe_simple_vocab_16e6.txt.gz"
