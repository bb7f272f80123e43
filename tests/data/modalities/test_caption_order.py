"""Words of order in captions that are played backwards."""

from __future__ import annotations

import pytest

from mmssl.data.modalities.captions.order import mentions_speech, swap_order

SWAPPED = [
    ("a bell before a bark", "a bell after a bark"),
    ("A beep After a flash", "A beep Before a flash"),
    ("a high tone followed by a low tone", "a high tone preceded by a low tone"),
    ("a siren, and two seconds later a horn", "a siren, and two seconds earlier a horn"),
    ("the three sounds before the five", "the three sounds after the five"),
]


@pytest.mark.parametrize(("caption", "mirrored"), SWAPPED)
def test_order_is_swapped(caption: str, mirrored: str) -> None:
    assert swap_order(caption) == ("swapped", mirrored)
    assert swap_order(mirrored) == ("swapped", caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a dog barks",
        "a cat next to a bowl",
        "one after another",
        "a ball on the left",
        "a dog left of a tree",
        "red lights",
        "a bell",
    ],
)
def test_timeless_captions_stay(caption: str) -> None:
    assert swap_order(caption) == ("unchanged", caption)


@pytest.mark.parametrize(
    "caption",
    [
        "a bell rings, then a dog barks",
        "first a bell and finally a bark",
        "a door opens",
        "a car drives towards the camera",
        "a man stands before a mirror",
        "a train approaching",
        "a ball rolls from left to right",
        "he looks after a dog",
        "a man left the room before the dog barked",
        "the tone goes left to right",
        "left to right: a sweep",
        "a left at the light",
        "a wheel spinning clockwise",
        "a ball rolls down a hill",
        "a balloon floats up",
        "a glass shatters",
        "someone lights a candle",
        "a descending scale",
        "a countdown",
    ],
)
def test_doubtful_captions_are_given_up(caption: str) -> None:
    assert swap_order(caption) == ("ambiguous", caption)


def test_speech_is_recognised() -> None:
    assert mentions_speech("A woman speaks to a crowd")
    assert mentions_speech("singing in a choir")
    assert not mentions_speech("a dog barks")
