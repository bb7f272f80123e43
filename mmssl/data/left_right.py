"""Left and right in captions: which words change when picture and sound are mirrored.

Only what clearly names a side is swapped ("on the left", "left of", "his right hand", "turns left", "clockwise"), and what
clearly does not is left alone ("left the room", "nothing is left", "right now", "all right", "the right time"). Everything else,
and sides in other languages than English, makes a caption ambiguous. Writing in the picture is mirrored too: nothing here knows.
"""

from __future__ import annotations

from mmssl.data.rewrite import Rewrite, Verdict, Words, rewrite, word_set

_SIDES = {"left": "right", "right": "left"}
_ENDINGS = ("", "most", "ward", "wards")
_MIRROR = {
    **{side + ending: other + ending for side, other in _SIDES.items() for ending in _ENDINGS},
    # Spellings with "counter-" or "anti-" have no opposite of their own, so swapping twice would not give them back.
    **{"clockwise": "counterclockwise", "counterclockwise": "clockwise"},
}
_TURNING = word_set("counter-clockwise anticlockwise anti-clockwise widdershins")
_FOREIGN = word_set(
    "links rechts gauche droite izquierda izquierdo derecha derecho esquerda direita sinistra destra слева справа 左 右"
)

_PREPOSITIONS = word_set(
    "on to at from toward towards in into off by near along down up across with within past beside of"
)
_ARTICLES = word_set(
    "the its his her their our my your a an both each one this that another other's who's person's man's woman's"
)
_PLACED = word_set(
    "far extreme very upper lower top bottom middle center centre back front rear near immediate mid outer"
    " inner slightly slight hard sharp stage camera house screen frame picture image down-stage downstage"
    " upstage"
)
_DIRECTED = word_set(
    "turn turns turning turned move moves moving moved go goes going face faces facing faced look looks"
    " looking looked head heads heading headed lean leans leaning leaned tilt tilts tilting tilted pan pans"
    " panning panned swing swings swinging veer veers veering veered point points pointing pointed swipe"
    " swipes swiping slide slides sliding bend bends bending swerve swerves swerving drift drifts drifting run"
    " runs running walk walks walking fly flies flying drive drives driving roll rolls rolling travel travels"
    " traveling travelling step steps stepping gaze gazes gazing glance glances glancing"
)
_SIDED = word_set(
    "side sides half halves corner corners speaker speakers ear ears channel channels hand hands edge edges"
    " foot feet leg legs arm arms eye eyes lane lanes third thirds quarter part portion border margin panel"
    " panels shoulder shoulders wall end bank page column row knee knees thumb wrist elbow fist hip cheek"
    " glove shoe boot sleeve pocket paw turn turns image photo picture frame screen foreground background"
    " center centre headlight wheel door window mirror blinker tail tire tyre engine claw horn"
)
"""What has a side: "the right eye" is a place, "the right tool" is not."""
_AFTER_A_SIDE = word_set(
    ". , ; : ) ] ! left and or but while is are was were has have with in on at of by from near next beside"
    " behind above below under over to onto then the a an as that which who where when there stands sits stand"
    " sit lies appears shows plays sounds can holds looks against facing wearing holding standing sitting"
    " looking walking playing talking riding running eating carrying watching reading smiling leaning singing"
    " laughing drinking barking sleeping lying parked seen dressed around through before after"
)
"""What may follow a side that stands for itself: "on the right wearing a hat", not "on the right track"."""
_CORRECT = word_set(
    "time times place way thing things person people man moment answer answers size tool tools amount choice"
    " choices decision idea kind sort word words note notes order stuff angle angles temperature conditions"
    " equipment job fit balance mood"
)
_DIRECTLY = word_set(
    "now away after before behind next beside in into through above below under underneath beneath over there"
    " here where when as then outside inside beyond alongside against"
)
_LEAVING = word_set(
    "the a an his her their its my our your this that these those behind alone home for early open unattended out over"
)
_REMAINS = word_set(
    "is are was were be been being 's isn't aren't nothing something anything little much few one none time"
    " has have had"
)
_REST = word_set("what nothing little much none all that bit rest whatever is's")
_PARTS = {
    "swap": word_set(
    "hand handed handedly most side sided facing footed foot turn to and or top bottom upper lower front back"
    " rear up down far click eye ear half center centre middle hander"
),
    "keep": word_set("angled angle over behind all off out so minded click-free of-way"),
}  # fmt: skip


def swap_sides(caption: str) -> Rewrite:
    """The caption of the mirrored sample.

    Case and number of words stay, and swapping twice gives the caption back.
    """
    return rewrite(caption, _mirror, _judge)


def _mirror(word: str) -> str | None:
    if word in _TURNING or word in _FOREIGN or "左" in word or "右" in word:
        return word  # looked at, to be doubted
    if word in _MIRROR:
        return _MIRROR[word]
    parts = word.split("-")
    return "-".join(_MIRROR.get(part, part) for part in parts) if _sides(parts) else None


def _sides(parts: list[str]) -> int:
    return sum(part in _MIRROR for part in parts)


def _judge(sentence: Words, place: int) -> Verdict:
    word = sentence.at(place)
    if word in ("left", "right"):
        return _judge_left(sentence, place) if word == "left" else _judge_right(sentence, place)
    if word in _MIRROR:
        return "swap"
    rest = {part for part in word.split("-") if part not in _MIRROR}
    if word in _TURNING or not _sides(word.split("-")):
        return "doubt"
    return "swap" if rest <= _PARTS["swap"] else "keep" if rest <= _PARTS["keep"] else "doubt"


def _judge_left(sentence: Words, place: int) -> Verdict:
    before, after = sentence.at(place - 1), sentence.at(place + 1)
    if after == "of":
        remains = sentence.at(place - 2) in _REST or before in _REST
        return "keep" if remains else "doubt" if sentence.at(place - 2) == "there" else "swap"
    if before in _REMAINS:
        return "doubt" if before in _ARTICLES or after in _SIDED else "keep"
    if _names_a_side(sentence, place):
        return "doubt" if before in ("a", "an", "one") and after not in _SIDED else "swap"
    if after in _LEAVING or (after in _PREPOSITIONS and before.isalpha()):
        return "keep"  # a verb: she left the room, a bag left on a bench
    return "doubt"


def _judge_right(sentence: Words, place: int) -> Verdict:
    before, after = sentence.at(place - 1), sentence.at(place + 1)
    if before in ("all", "that's") or after == "?":
        return "doubt" if before == "that's" else "keep"
    if after == "of":
        return (
            "doubt"
            if before in ("the", "a", "his", "her", "their") and sentence.at(place - 2) not in _PREPOSITIONS
            else "swap"
        )
    if _names_a_side(sentence, place):
        if after in _CORRECT:
            return "keep" if before in _ARTICLES else "doubt"
        if before in _ARTICLES and before not in ("a", "an") and sentence.at(place - 2) in _PREPOSITIONS:
            if sentence.at(place - 2) == "in" and after not in _SIDED:
                return "doubt"  # he is in the right
            return "swap" if after in _AFTER_A_SIDE | _SIDED else "doubt"
        if before in _ARTICLES:
            return "swap" if after in _SIDED else "doubt"
        return "swap" if after in _AFTER_A_SIDE | _SIDED else "doubt"
    return "keep" if after in _DIRECTLY else "doubt"


def _names_a_side(sentence: Words, place: int) -> bool:
    """Whether the words in front, or the marks around, say that a side is meant."""
    before, after = sentence.at(place - 1), sentence.at(place + 1)
    if before in ("(", "[") and after in (")", "]", ",", ":"):
        return True
    if after == ":" and (place == 0 or before in (".", ";", ",", "!")):
        return True
    if before in ("and", "or", "/", "to", "-", "&"):  # the second of a pair: left and right, right to left
        return sentence.at(place - 2) in _SIDES and sentence.at(place - 2) != sentence.at(place)
    if after in ("and", "or", "/", "to", "-", "&") and sentence.at(place + 2) in _SIDES:
        return sentence.at(place + 2) != sentence.at(place)
    if after in _SIDED and before != "is":
        return True
    return before in _ARTICLES or before in _PLACED or before in _DIRECTED or before in ("on", "at", "from")
