"""Left and right in captions: which words change when picture and sound are mirrored.

Words that clearly name a side are swapped ("on the left", "left of", "his right hand", "turns left", "clockwise"); those that
clearly do not are kept ("left the room", "nothing is left", "right now", "all right", "the right time"). All other cases, and
sides in languages other than English, make a caption ambiguous. Text in the picture is mirrored too, which is not detected.
"""

from __future__ import annotations

from mmssl.data.modalities.captions.words import Rewrite, Verdict, Words, rewrite, word_set

_SIDES = {"left": "right", "right": "left"}
_ENDINGS = ("", "most", "ward", "wards")
_MIRROR = {
    **{side + ending: other + ending for side, other in _SIDES.items() for ending in _ENDINGS},
    # Spellings with "counter-" or "anti-" have no distinct opposite, so swapping twice would not give them back.
    **{"clockwise": "counterclockwise", "counterclockwise": "clockwise"},
    **{side + "hand": other + "hand" for side, other in _SIDES.items()},
}
_TURNING = word_set("counter-clockwise anticlockwise anti-clockwise widdershins")
_NAMES_OF_SIDES = word_set(
    "lefty lefties leftie righty righties lefthanded righthanded leftside rightside lefts topleft topright"
    " bottomleft bottomright upperleft upperright lowerleft lowerright southpaw southpaws starboard larboard portside"
)
"""Words with a side in them that have no certain opposite, or another meaning."""
_FOREIGN = word_set(
    "links rechts linke linken linker linkes linkem rechte rechten rechter rechtes rechtem gauche droite izquierda izquierdo"
    " derecha derecho esquerda esquerdo direita direito sinistra sinistro destra destro слева справа влево вправо налево направо"
    " левый левая левое левой левом левую правый правая правое правой правом правую зліва ліворуч праворуч lewo lewa lewy lewej"
    " lewym prawo prawa prawy prawej prawym vlevo vpravo levé levá levý pravé pravá pravý vänster vänstra höger högra venstre"
    " højre høyre vasen vasemmalla oikea oikealla solda sağda solunda sağında sol sağ trái phải kiri kanan αριστερά δεξιά"
)
_FOREIGN_PARTS = (
    "左",
    "右",
    "왼쪽",
    "오른쪽",
    "ซ้าย",
    "ขวา",
    "يسار",
    "يمين",
    "שמאל",
    "ימין",
    "बाएं",
    "बाएँ",
    "दाएं",
    "दाएँ",
)
"""Searched in the whole caption: these scripts have no spaces, or marks that split words here."""

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
_THINGS = word_set("stage camera house screen frame picture image")
"""Words of the list above that are things too: "exits stage left", but "a camera left on a bench"."""
_NUMBERS = word_set("one two three four five six seven eight nine ten")
_COUNTED = word_set(
    "several many some few more no any most last only extra old new"
    " red blue green yellow black white small large little big happy sad empty bread"
)
"""Words before things that were left, as in "a few rolls left on a plate"; numbers act alike."""
_STEERED = word_set(
    "turn turns turning turned veer veers veering veered bend bends bending swerve swerves swerving lean leans leaning"
    " leaned tilt tilts tilting tilted pan pans panning panned swing swings swinging swipe swipes swiping"
)
"""Verbs whose left or right is a side, unlike "to look, walk or fly right over the house", which means straight."""
_STRAIGHT = word_set(
    "at to into onto on in over under through past by along up down across around about behind beside beyond between"
    " above below before after off out from toward towards away back near against inside outside"
)
_STAYS = word_set(
    "stay stays keep keeps bear bears merge merges sits stands lies appears hangs rests waits second third fourth first"
    " next seen shown sat stood hung second-from third-from"
)
"""Words, besides participles, before a "left" that is a place, as in "pictured left with an umbrella"."""
_QUOTING = word_set(
    "say says said saying tell tells telling told announce announces announcing announcer instruct instructs instructing"
    " reads spell spells spelling instructions lyrics"
)
"""After these, in the same sentence, sides may be spoken or written words, which a mirror does not change."""
_SHOUTING = _QUOTING | word_set("shout shouts shouting yell yells yelling call calls calling sing sings singing voice")
_BIDDING = word_set("turn go move look keep swipe face point lean step bend walk run drive")
_CHOOSING = word_set(
    "find finds found finding choose chooses chose pick picks picked picking need needs want wants know knows get gets got"
    " that this not wrong is was"
)
"""Words before "the right door" in the possible sense of the correct one."""
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
    " panels shoulder shoulders wall end page column row knee knees thumb wrist elbow fist hip cheek"
    " glove shoe boot sleeve pocket paw turn turns image photo picture frame screen foreground background"
    " center centre headlight wheel door window mirror blinker tail tire tyre engine claw horn"
)
"""Things that have a side: "the right eye" is a place, "the right tool" is not."""
_AFTER_A_SIDE = word_set(
    ". , ; : ) ] ! ? left and or but while is are was were has have with in on at of by from near next beside"
    " behind above below under over to onto then the a an as that which who where when there stands sits stand"
    " sit lies appears shows plays sounds can holds looks against facing wearing holding standing sitting"
    " looking walking playing talking riding running eating carrying watching reading smiling leaning singing"
    " laughing drinking barking sleeping lying parked seen dressed around through before after across along toward"
    " towards during barks meows chirps sings speaks talks says beeps rings honks hums buzzes crows cries laughs claps"
    " knocks moves runs walks turns jumps flashes blinks falls opens closes starts stops rolls drives flies comes goes gets"
    " had does will keeps makes wears waits sleeps eats drinks reads rides smiles watches plays"
)
"""Words that may follow a side used as a noun: "on the right wearing a hat", not "on the right track"."""
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
_REST = word_set("what what's whatever whatever's nothing little much none all that bit rest")
_MIDDLE = word_set("middle center centre face")
_PERHAPS = word_set("there there's half some more enough any anything something part")
_PARTS = {
    "swap": word_set(
    "hand handed handedly most side sided facing footed foot turn to and or top bottom upper lower front back"
    " rear up down eye ear half center centre middle hander"
),
    "keep": word_set("angled angle over behind all off out so minded click-free of-way"),
}  # fmt: skip


def swap_sides(caption: str) -> Rewrite:
    """Rewrite a caption for the mirrored sample.

    Case and number of words stay the same, and swapping twice gives the caption back.
    """
    if any(part in caption for part in _FOREIGN_PARTS):
        return Rewrite("ambiguous", caption)
    return rewrite(caption, _mirror, judge_side)


def _mirror(word: str) -> str | None:
    if word in _TURNING or word in _FOREIGN or word in _NAMES_OF_SIDES:
        return word  # for `judge_side`, which returns "doubt"
    if word in ("left's", "right's") or word in ("l", "r", "l-r", "r-l"):
        return word
    if word in _MIRROR:
        return _MIRROR[word]
    parts = word.split("-")
    return "-".join(_MIRROR.get(part, part) for part in parts) if _sides(parts) else None


def _sides(parts: list[str]) -> int:
    return sum(part in _MIRROR for part in parts)


def judge_side(sentence: Words, place: int) -> Verdict:
    """Decide about a word with a side in it: "swap": it names a side; "keep": it does not; "doubt": ambiguous."""
    word = sentence.at(place)
    if word in ("l", "r"):
        marked = sentence.at(place - 1) in ("(", "[") or sentence.at(place + 1) in ("to", "-", "/")
        return "doubt" if marked else "keep"
    if _is_quoted(sentence, place) or _is_a_phrase(sentence, place):
        return "doubt"
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
        return "keep" if remains else "swap"
    if _may_be_a_verb(sentence, place):
        return "doubt"
    if before in _REMAINS:
        return "doubt" if before in _ARTICLES or after in _SIDED else "keep"
    if _names_a_side(sentence, place):
        return "doubt" if before in ("a", "an") and after not in _SIDED else "swap"
    if after in _LEAVING or (after in _PREPOSITIONS and before.isalpha()):
        return "keep"  # a verb: she left the room, a bag left on a bench
    return "doubt"


def _judge_right(sentence: Words, place: int) -> Verdict:
    before, after = sentence.at(place - 1), sentence.at(place + 1)
    if _may_be_straight(sentence, place):
        return "doubt"
    if before == "all" or (after == "?" and before in (",", "-")):
        return "keep"
    if before == "that's":
        return "doubt"
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
    if after == "in" and sentence.at(place + 2) != "front" and sentence.at(place + 3) not in _MIDDLE:
        return "doubt"  # "right in the picture" may be a place
    return "keep" if after in _DIRECTLY else "doubt"


def _names_a_side(sentence: Words, place: int) -> bool:
    """Whether the words before, or the marks around, show that the word names a side."""
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


def _is_quoted(sentence: Words, place: int) -> bool:
    """Whether the word may be spoken or written in the sample, where a mirror does not change it."""
    spoken = list(sentence.words[:place])
    while "." in spoken:
        del spoken[: spoken.index(".") + 1]
    if not _QUOTING.isdisjoint(spoken):
        return True
    return sentence.at(place - 1) in _BIDDING and not _SHOUTING.isdisjoint(sentence.words)


def _is_a_phrase(sentence: Words, place: int) -> bool:
    """Whether the word belongs, or may belong, to a phrase that does not mean a side."""
    before, word, after, then = (sentence.at(place + step) for step in (-1, 0, 1, 2))
    if after == "of":
        own = sentence.at(place + 3) == "own"  # she left of her own accord
        return then in ("way", "politics") or own or before in _PERHAPS or sentence.at(place - 2) in _PERHAPS
    if word in ("clockwise", "counterclockwise"):
        return before in ("counter", "anti", "-")
    parts = word.split("-")
    if len(parts) > 1:
        return (
            ("far" in parts and after not in _SIDED)
            or ("hand" in parts and after in ("man", "woman"))
            or ("side" in parts and after == "up")
        )
    if after == "side":
        return then == "up" or (then == "of" and not {"law", "history"}.isdisjoint(sentence.words))
    if before == "the":
        chosen = sentence.at(place - 2) in _CHOOSING and after in _SIDED
        return chosen or after == "hands" or (after in ("foot", "page") and sentence.at(place - 2) == "on")
    return before == "two" and after == "feet"


def _may_be_a_verb(sentence: Words, place: int) -> bool:
    """Whether "left" may be a verb although the words around look like a side, or the reverse."""
    first, earlier, before, _, after = (sentence.at(place + step) for step in (-3, -2, -1, 0, 1))
    named = first in _ARTICLES | {"digit", "number"} and after not in _PREPOSITIONS  # the seven moves left
    if before in _THINGS | _DIRECTED and (earlier in _ARTICLES | _COUNTED or (earlier in _NUMBERS and not named)):
        return True  # a camera left on a bench, two rolls left
    if before in _THINGS and after in _LEAVING:
        return True
    a_place = before in _STAYS or (before.endswith(("ing", "ed")) and before not in _PLACED | _DIRECTED)
    return a_place and after in _PREPOSITIONS  # pictured left with an umbrella


def _may_be_straight(sentence: Words, place: int) -> bool:
    """Whether "right" may mean straight, as in "flies right over the house"."""
    before, after = sentence.at(place - 1), sentence.at(place + 1)
    if before in _STEERED:
        return after in ("around", "over", "up", "back", "away")
    return before in _DIRECTED and after in _STRAIGHT and sentence.at(place + 2) not in _SIDES
