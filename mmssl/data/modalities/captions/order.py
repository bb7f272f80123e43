"""Temporal order in captions: which words change when picture and sound are played backwards.

"A before B" becomes "A after B", "followed by" becomes "preceded by". Words of order without an opposite ("then", "finally"),
motion with a direction ("a door opens", "towards"), and speech make a caption ambiguous: it would be false for the reversed sample.
"""

from __future__ import annotations

from mmssl.data.modalities.captions.sides import judge_side
from mmssl.data.modalities.captions.words import Rewrite, Verdict, Words, rewrite, word_set

_MIRROR = {"before": "after", "after": "before", "followed": "preceded", "preceded": "followed"}
_MIRROR |= {"earlier": "later", "later": "earlier"}

_ORDER = word_set(
    "then first firstly second secondly third last lastly finally next afterwards afterward subsequently"
    " eventually until till once since begin begins beginning start starts starting end ends ending finish"
    " finishes finishing stop stops stopping again soon suddenly gradually slowly previously now followed"
    " preceded earlier later before after"
)

_DIRECTED = word_set(
    "towards toward away into onto through past out off across approach approaches approaching leave leaves"
    " leaving left enter enters entering depart departs departing arrive arrives arriving come comes coming go"
    " goes going move moves moving pass passes passing open opens opening close closes closing fall falls"
    " falling rise rises rising climb climbs climbing throw throws throwing catch catches pour pours pouring"
    " drop drops dropping jump jumps jumping run runs running walk walks walking drive drives driving fly"
    " flies flying break breaks breaking burst bursts explode explodes light lights put puts pick picks give"
    " gives take takes forward forwards backward backwards faster slower louder quieter increases increasing"
    " decreases decreasing grows growing shrinks fades fading accelerates accelerating turns turning crossing"
    " crosses from up down upward upwards downward downwards upstairs downstairs clockwise counterclockwise"
    " anticlockwise counter-clockwise anti-clockwise roll rolls rolling slide slides sliding ride rides riding swim swims"
    " swimming crawl crawls crawling swipe swipes swiping pan pans panning zoom zooms zooming march marches marching sail"
    " sails sailing float floats floating sink sinks sinking land lands landing ascend ascends ascending descend descends"
    " descending spill spills spilled spilling drip drips dripping splash splashes splashing melt melts melting crash"
    " crashes crashing smash smashes smashing shatter shatters shattering crack cracks cracking tear tears tearing cut cuts"
    " cutting hit hits hitting kick kicks kicking strike strikes striking burn burns burning crescendo diminuendo countdown"
    " count counts counting sunset sunrise"
)
_SPEECH = word_set(
    "say says said saying speak speaks speaking spoke spoken speech talk talks talking voice voices word"
    " words sing sings singing song lyrics narrate narrates narrating narrator announce announces announcer"
    " announcing conversation converse conversing dialogue read reads reading lecture interview shout shouts"
    " shouting whisper whispers whispering rap raps rapping"
)
_STANDING = word_set(
    "stand stands standing sit sits sitting kneel kneels kneeling bow bows bowing pose poses posing lie lies"
)
_IDIOMS_AFTER = word_set("look looks looking looked name named names all run runs running chase chases take takes")


def mentions_speech(caption: str) -> bool:
    """Whether the caption mentions speech or singing, which cannot be understood backwards."""
    return not _SPEECH.isdisjoint(Words.of(caption).words)


def swap_order(caption: str) -> Rewrite:
    """Rewrite a caption for the sample played backwards.

    Case and number of words stay the same, and swapping twice gives the caption back.
    """
    return rewrite(caption, _mirror, _judge)


def _mirror(word: str) -> str | None:
    if word in _MIRROR:
        return _MIRROR[word]
    return (
        word if word in _ORDER or word in _DIRECTED or word in _SPEECH else None
    )  # for `judge`, which returns "doubt"


def _judge(sentence: Words, place: int) -> Verdict:
    word, before, after = sentence.at(place), sentence.at(place - 1), sentence.at(place + 1)
    if word in ("next", "close") and after in ("to", "by", "up"):
        return "keep"  # a place, not a time
    if word in ("from", "second", "third", "first"):
        return "keep" if sentence.at(place + 2) == "side" else "doubt"
    if word == "left":  # a place stays; leaving becomes coming, and a direction reverses
        direction = before in ("to", "from") or (after == "to" and sentence.at(place + 2) == "right")
        return "keep" if judge_side(sentence, place) == "swap" and not direction else "doubt"
    if word in ("light", "lights"):  # or the verb
        return "doubt" if after in ("a", "an", "the", "his", "her", "up") else "keep"
    if word not in _MIRROR:
        return "doubt"
    if word in ("followed", "preceded"):
        return "swap" if after == "by" else "doubt"
    if word == "after" and after in ("another", "each", "one", "the") and before == "one":
        return "keep"  # "one after another" holds in both directions
    if before in _STANDING or before in _IDIOMS_AFTER or after in ("all", "you", "us"):
        return "doubt"
    return "swap"
