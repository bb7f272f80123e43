"""Synchronized augmentation kernels for captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mmssl.data.kernel import Entry, Kernel, Operand, identity, unchanged
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.captions.order import mentions_speech, swap_order
from mmssl.data.modalities.captions.sides import swap_sides
from mmssl.data.modalities.captions.words import Rewrite, Words, word_set

PLACES = word_set(
    "top bottom upper lower middle center centre central corner corners edge edges side sides above below"
    " over under beneath background foreground border"
)
"""Words for places in the picture, besides left and right."""


def _names_a_place(captions: Captions, entry: Entry, field: Operand) -> str | None:
    for caption in (*captions, *captions.negatives):
        if swap_sides(caption).outcome != "unchanged" or not PLACES.isdisjoint(Words.of(caption).words):
            return "position_words"
    return None


def _mirror_text(captions: Captions, entry: Entry, field: Operand) -> Captions:
    return captions.map(lambda caption: swap_sides(caption).text)


def _cannot_mirror(captions: Captions, entry: Entry, field: Operand) -> str | None:
    every = (*captions, *captions.negatives)
    return "ambiguous_caption" if any(swap_sides(caption).outcome == "ambiguous" for caption in every) else None


def _mix_captions(captions: Captions, entry: Entry, field: Operand) -> Captions:
    other: Captions = field.partner
    if entry["text"] == "heavier":
        return captions if entry["weight"] >= 0.5 else other
    # Given false captions are dropped: one may be true of the partner.
    texts = [f"{caption.rstrip(' .')} and {other[i % len(other)]}" for i, caption in enumerate(captions)]
    return Captions(texts, captions.weights)


def _reverse_text(captions: Captions, entry: Entry, field: Operand) -> Captions:
    return captions.map(lambda caption: swap_order(caption).text)


def _cannot_reverse(captions: Captions, entry: Entry, field: Operand) -> str | None:
    if any(map(mentions_speech, captions)):
        return "speech"
    every = (*captions, *captions.negatives)
    return "ambiguous_caption" if any(swap_order(caption).outcome == "ambiguous" for caption in every) else None


def _cannot_roll(captions: Captions, entry: Entry, field: Operand) -> str | None:
    # Rolling joins the end to the beginning, which changes order and direction.
    every = (*captions, *captions.negatives)
    return "order_words" if any(swap_order(caption).outcome != "unchanged" for caption in every) else None


_SWAPS: Mapping[str, Callable[[str], Rewrite]] = {"caption": swap_sides, "order": swap_order}
"""Relation that `negative` breaks -> rewriting function for captions."""


def _breakable(captions: Captions) -> frozenset[str]:
    return frozenset(
        relation for relation, swap in _SWAPS.items() if all(swap(one).outcome == "swapped" for one in captions)
    )


def _break_captions(captions: Captions, entry: Entry, field: Operand) -> Captions:
    swap = _SWAPS.get(entry["relation"])
    return captions if swap is None else Captions([swap(caption).text for caption in captions], captions.weights)


_WHOLE = identity("a caption without times describes the whole sample")
CAPTIONS = {
    "time_crop": _WHOLE,
    "time_mask": _WHOLE,
    "speed": identity("captions do not give the speed as a number"),
    "gain": identity("captions do not give the level as a number"),
    "reverse": Kernel(_reverse_text, _cannot_reverse),
    "roll": Kernel(unchanged, _cannot_roll),
    "flip": Kernel(_mirror_text, _cannot_mirror),
    "crop": Kernel(unchanged, _names_a_place),
    "mixup": Kernel(_mix_captions),
    "negative": Kernel(_break_captions, measure=_breakable),
}
