from __future__ import annotations

import pytest

from mmssl.core.errors import RecipeError
from mmssl.curation.where import NoAnswer, parse_conditions

RECORD = {
    "width": 200,
    "fold": "5",
    "name": "a and b",
    "ok": True,
    "split": "train",
    "flag": "True",
    "score": 0.5,
    "two words": 2,
}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("width >= 200", True),
        ("width > 200", False),
        ("width>=200", True),
        ("fold != 5", False),
        ("fold == 5.0", True),
        ("fold == '5'", True),
        ("name == 'a and b'", True),
        ('name == "a"', False),
        ("ok == true", True),
        ("ok == False", False),
        ("flag == True", True),
        ("flag == true", True),
        ("flag == 'True'", True),
        ("flag != False", True),
        ("flag == TRUE and ok in [True, maybe]", True),
        ("flag in [False, TRUE]", True),
        ("split == True", False),
        ("split == train and width < 201", True),
        ("split == train and width < 200", False),
        ("split < val", True),
        ("'two words' == 2", True),
        ("score <= 5e-1", True),
        ("split in [train, val]", True),
        ("split in [test, 'val']", False),
        ("fold in [1, 5] and width > 1", True),
        ("fold in [1,2]", False),
        ('name in ["a, b", "a and b"]', True),
        ("split in [5, train]", True),
    ],
)
def test_a_condition_compares_numbers_as_numbers_and_the_rest_as_text(text: str, answer: bool) -> None:
    assert parse_conditions(text)(RECORD) is answer


def test_names_are_those_of_the_values_that_it_reads() -> None:
    assert parse_conditions("b > 1 and 'a c' == x and b < 3").names == ("b", "a c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "got its end, wanted a name"),
        ("width", "got its end, wanted an operator"),
        ("width >=", "got its end, wanted a value"),
        ("width = 3", "got = 3, wanted == for equal"),
        ("width 3", "got 3, wanted an operator"),
        ("width == 3 and", "got its end, wanted a condition after `and`"),
        ("width == 3 or fold == 5", "got or, wanted `and`"),
        ("name == black and white", "got its end, wanted an operator"),
        ("name == black white", "got white, wanted `and` between conditions, or quotes"),
        ("name == 'a", "got 'a, wanted a name, an operator or a value (close every quote)"),
        (">= 3", "got >=, wanted a name"),
        ("split in train", "got train, wanted [a list, of values]"),
        ("split in []", "got [], wanted values with commas"),
        ("split in [a 'b]", "wanted values with commas"),
        ("split == [a]", "got [a], wanted a value"),
    ],
)
def test_what_is_no_condition_is_refused_at_its_place(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_conditions(text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "no value for width"),
        ({"width": None}, "no value for width"),
        ({"width": float("nan")}, "no value for width"),
        ({"width": ""}, "no value for width"),
        ({"width": "wide"}, "width is 'wide', wanted a number to compare with 200"),
        ({"width": True}, "width is True, wanted a number to compare with 200"),
        ({"width": [1]}, "width is [1], wanted a number to compare with 200"),
    ],
)
def test_a_record_that_cannot_answer_says_why(record: dict[str, object], words: str) -> None:
    with pytest.raises(NoAnswer, match=f"^{words.replace('[', '.').replace(']', '.')}$"):
        parse_conditions("width >= 200")(record)


def test_text_and_a_number_are_not_compared_in_silence() -> None:
    with pytest.raises(NoAnswer, match="label is 3, wanted text to compare with 'cat'"):
        parse_conditions("label == cat")({"label": 3})
