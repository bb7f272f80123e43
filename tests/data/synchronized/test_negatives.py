"""Labelled negatives: each breaks the relation that its label says, and no other one that it could leave alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.negatives import SHIFT, Negative
from tests.data.metamorphic import judge, modalities, scenes, with_caption


@pytest.fixture(scope="module")
def clips() -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    mods = modalities()
    found = []
    for sample in scenes(8):
        extension = next(e for e in ("mp4", "webm") if e in sample)
        values = {name: mods[name].decode(sample[extension], extension) for name in ("video", "audio")}
        values |= {"text": Captions(["a bell"]), "label": 1}
        found.append((values, sample["captions"]))
    return found


@pytest.mark.parametrize(
    ("relation", "broken"), [("shifted", "sync"), ("reversed", "sync"), ("channels", "pan"), ("caption", "caption")]
)
def test_a_negative_is_what_its_label_says(clips: Any, relation: str, broken: str) -> None:
    negative = Synchronized([Negative(probability=1.0, relations=(relation,))], modalities())  # type: ignore[arg-type]
    still_true = []
    for seed in range(80):
        values, captions = clips[seed % len(clips)]
        made, (entry,) = negative(with_caption(values, captions, seed // len(clips)), (seed,))
        verdict = judge(made["video"], made["audio"], made["text"][0])
        if not entry["applied"]:
            assert entry["skipped"] == "no_relation"
            continue
        assert entry["relation"] == relation
        still_true.append(getattr(verdict, broken))
        if relation == "caption":
            assert verdict.sync is not False
            assert verdict.pan is not False
        if relation == "channels":
            assert verdict.sync is not False
            assert verdict.caption is not False
        if relation == "shifted":
            length = made["audio"].shape[1] / 8000
            assert SHIFT <= entry["seconds"] <= length - SHIFT
    told = [value for value in still_true if value is not None]
    assert len(told) >= 20
    assert np.mean(told) <= 0.1


def test_only_relations_that_are_there_are_broken(clips: Any) -> None:
    negative = Synchronized([Negative(probability=1.0)], modalities())
    values = {**clips[0][0], "text": Captions(["a bell"])}
    values["audio"] = np.repeat(values["audio"].mean(axis=0, keepdims=True), 2, axis=0)  # from the middle
    drawn = Counter(negative(values, (seed,))[1][0]["relation"] for seed in range(100))
    assert set(drawn) == {"shifted", "reversed"}
    silent = {name: value for name, value in values.items() if name != "audio"}
    assert negative(silent, (0,))[1][0] == {"op": "negative", "applied": False, "skipped": "no_relation"}


def test_order_in_captions(clips: Any) -> None:
    negative = Synchronized([Negative(probability=1.0, relations=("order",))], modalities())
    made, (entry,) = negative({**clips[0][0], "text": Captions(["a bell before a bark"])}, (0,))
    assert entry["relation"] == "order"
    assert made["text"] == ("a bell after a bark",)
