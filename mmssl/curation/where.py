"""Conditions on metadata, as in `--where "json.width >= 200 and json.license == 'CC BY'"`: parsed, never evaluated as code.

    condition ("and" condition)*        condition: NAME OPERATOR VALUE, or NAME in [VALUE, ...]        operator: == != < <= > >=

A name or text that has blanks, brackets or operators in it stands in quotes. A number compares as a number, also
with text that is one (`fold != 5` fits the cell "5"); everything else compares as text. `true` and `false`,
written in any case, equal booleans and the texts true and false in any case.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mmssl.core.errors import DataError, RecipeError

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_TOKEN = re.compile(
    r"""\s*(?:(?P<operator>[=!<>]=|[<>])|(?P<list>\[[^\[\]]*\])|"""
    r"""(?P<quoted>"[^"]*"|'[^']*')|(?P<bare>[^\s=!<>"'\[\]]+))"""
)
_ENTRY = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,"']*?))\s*(?:,|$)""")
_TRUTHS = ("true", "false")


class NoAnswer(DataError):
    """The metadata cannot answer a condition: the value is missing, or of another type."""


@dataclass(frozen=True)
class Condition:
    """One comparison.

    Attributes:
        name: of the value, such as a column. operator: see `OPERATORS`. wanted: numbers or texts, of which one must fit.
    """

    name: str
    operator: str
    wanted: tuple[float | str, ...]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether a record fulfils it.

        Raises:
            NoAnswer: the value is missing (also None, NaN, or empty text beside a number), or cannot be compared.
        """
        got = values.get(self.name)
        if got is None or got != got or (got == "" and any(isinstance(one, float) for one in self.wanted)):
            raise NoAnswer(f"no value for {self.name}")
        return any(OPERATORS[self.operator](self._comparable(got, wanted), wanted) for wanted in self.wanted)

    def _comparable(self, got: Any, wanted: float | str) -> float | str:
        if isinstance(wanted, str):
            if isinstance(got, bool):
                return str(got).lower()
            if isinstance(got, str):
                return _truth(got) if wanted in _TRUTHS else got
            raise NoAnswer(f"{self.name} is {got!r}, wanted text to compare with {wanted!r}")
        try:
            if isinstance(got, bool):
                raise ValueError
            return float(got)
        except (TypeError, ValueError):
            raise NoAnswer(f"{self.name} is {got!r}, wanted a number to compare with {wanted:g}") from None


@dataclass(frozen=True)
class Where:
    """Conditions that must all hold, as a predicate of a record; made by `parse_conditions`."""

    conditions: tuple[Condition, ...]

    def __call__(self, values: Mapping[str, Any]) -> bool:
        """Whether a record fulfils all conditions. Raises NoAnswer, see `Condition.holds`."""
        return all(condition.holds(values) for condition in self.conditions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the values that it reads, in order, each once."""
        return tuple(dict.fromkeys(condition.name for condition in self.conditions))


def parse_conditions(text: str) -> Where:
    """Parse conditions joined by `and`; the module's docstring has the grammar.

    Raises:
        RecipeError: the text is no condition; the message shows the place.
    """
    tokens, position, text = [], 0, text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _refusal(text, text[position:].strip(), "a name, an operator or a value (close every quote)")
        tokens.append((str(match.lastgroup), match[match.lastgroup or 0]))
        position = match.end()
    conditions = [_condition(text, tokens[start : start + 3]) for start in range(0, max(1, len(tokens)), 4)]
    for kind, word in tokens[3::4]:
        if kind != "bare" or word != "and":
            raise _refusal(text, word, "`and` between conditions, or quotes around text with blanks")
    if tokens and len(tokens) % 4 == 0:
        raise _refusal(text, "its end", "a condition after `and`")
    return Where(tuple(conditions))


def _condition(text: str, tokens: list[tuple[str, str]]) -> Condition:
    several = len(tokens) > 1 and tokens[1] == ("bare", "in")
    value_kinds, value = (("list",), "[a list, of values]") if several else (("bare", "quoted"), "a value")
    wanted = (
        (("bare", "quoted"), "a name"),
        (("operator", "bare" if several else "operator"), f"an operator ({', '.join(OPERATORS)}, in)"),
        (value_kinds, value),
    )
    for place, (kinds, what) in enumerate(wanted):
        kind, token = tokens[place] if place < len(tokens) else ("end", "its end")
        if kind not in kinds:
            raise _refusal(text, token, what)
    (name_kind, name), (_, comparison), (kind, value) = tokens
    name = name[1:-1] if name_kind == "quoted" else name
    if several:
        return Condition(name, "==", _entries(text, value[1:-1]))
    return Condition(name, comparison, (value[1:-1] if kind == "quoted" else _number(value),))


def _entries(text: str, entries: str) -> tuple[float | str, ...]:
    """The values of a list, separated by commas: numbers if all are numbers, otherwise texts."""
    if _ENTRY.sub("", entries) or not entries.strip():
        raise _refusal(text, f"[{entries}]", "values with commas between them, texts with commas in quotes")
    found = [match.groups() for match in _ENTRY.finditer(entries) if match[0].strip()]
    texts = [_truth(bare) if bare is not None else one or other or "" for one, other, bare in found]
    numbers = [_number(bare) for _, _, bare in found if bare is not None]
    return tuple(numbers if len(numbers) == len(texts) and all(isinstance(one, float) for one in numbers) else texts)


def _number(word: str) -> float | str:
    """A finite number, or the word itself."""
    try:
        number = float(word)
    except ValueError:
        return _truth(word)
    return number if math.isfinite(number) else word


def _truth(word: str) -> str:
    """True and False, in any case, in small letters; every other word as it is."""
    return word.lower() if word.lower() in _TRUTHS else word


def _refusal(text: str, got: str, wanted: str) -> RecipeError:
    if got.startswith("=") and not got.startswith("=="):
        wanted = "== for equal"
    return RecipeError(f"--where {text!r}: got {got}, wanted {wanted}, as in 'width >= 200 and split == train'")
