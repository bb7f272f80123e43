"""Every synchronized operation keeps every relation of picture, sound and caption; what is done on one side only breaks one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmssl.data.kernel import Entry, Kernel, Operand, identity
from mmssl.data.modalities.audio import AudioModality
from mmssl.data.modalities.text import TextModality
from mmssl.data.modalities.video import VideoModality
from mmssl.data.modality import Modality
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.mix import Gain
from mmssl.data.synchronized.operation import Operation
from mmssl.data.synchronized.order import Reverse, Roll, TimeMask
from mmssl.data.synchronized.space import Crop, Flip
from mmssl.data.synchronized.time import Speed, TimeCrop
from tests.data.metamorphic import RATE, Verdicts, judge, modalities, scenes, with_caption

SEEDS = pytest.mark.parametrize("seeds", [120, pytest.param(500, marks=pytest.mark.slow)])

OPERATIONS: dict[str, tuple[Operation, ...]] = {
    "nothing": (),
    "time crop": (TimeCrop(seconds=1.2),),
    "flip": (Flip(probability=1.0),),
    "crop": (Crop(scale=(0.3, 0.8)),),
    "speed": (Speed(probability=1.0),),
    "reverse": (Reverse(probability=1.0),),
    "roll": (Roll(probability=1.0),),
    "time mask": (TimeMask(probability=1.0, share=(0.1, 0.3)),),
    "gain": (Gain(probability=1.0),),
    "everything": (TimeCrop(seconds=1.4), Speed(), Flip(), Reverse(), Crop(scale=(0.7, 1.0)), Gain()),
}


@pytest.fixture(scope="module")
def world() -> tuple[dict[str, Modality], list[tuple[dict[str, Any], tuple[str, ...]]]]:
    """Modalities, and clips as real codecs give them back, each with all of its captions."""
    mods = modalities()
    decoded = []
    for sample in scenes():
        members = {name: next(e for e in modality.extensions if e in sample) for name, modality in mods.items()}
        values = {}
        for name, extension in members.items():
            data = sample["txt"] if name == "text" else sample[extension]
            values[name] = mods[name].decode(data, extension)
        decoded.append((values, sample["captions"]))
    return mods, decoded


def score(
    world: Any, operations: tuple[Operation, ...], seeds: int, *, applied: bool = False
) -> dict[str, tuple[float, int]]:
    """Relation -> share of seeds in which it holds, among how many that could tell; `applied`: where nothing was skipped."""
    mods, decoded = world
    synchronized = Synchronized(operations, mods)
    verdicts: list[Verdicts] = []
    for seed in range(seeds):
        values, captions = decoded[seed % len(decoded)]
        values = with_caption(values, captions, seed // len(decoded))
        augmented, record = synchronized(values, (seed, "test"))
        if applied and not all(entry["applied"] for entry in record):
            continue
        cuts = [time for entry in record if entry["applied"] for time in _cuts(entry)]
        verdicts.append(judge(augmented["video"], augmented["audio"], augmented["text"][0], cuts))
    told = {name: [v for v in (getattr(x, name) for x in verdicts) if v is not None] for name in Verdicts._fields}
    return {name: (float(np.mean(values)) if values else 1.0, len(values)) for name, values in told.items()}


def _cuts(entry: Entry) -> list[float]:
    if entry["op"] == "roll":
        return [entry["length"] - entry["start"]]
    return [edge for spans in entry.get("spans", {}).values() for span in spans for edge in span]


@SEEDS
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_relation_is_kept(world: Any, name: str, seeds: int) -> None:
    for relation, (share, told) in score(world, OPERATIONS[name], seeds).items():
        assert share >= 0.99, f"{name}: {relation} holds in {share:.3f} of {told} seeds"
        assert told >= seeds // 4, f"{name}: only {told} seeds could tell of {relation}"


def late(value: Any, entry: Entry, field: Operand) -> Any:
    """The sound of a window that is 120 ms late."""
    first = round((entry["start"] - 0.12) * RATE)
    wave = np.pad(value, ((0, 0), (max(0, -first), 0)))
    return wave[:, max(0, first) : max(0, first) + round(entry["length"] * RATE)]


BROKEN: dict[str, tuple[str, str, type[Modality], Callable[..., Any] | None, str]] = {
    "flip without channels": ("flip", "flip", AudioModality, None, "pan"),
    "flip without frames": ("flip", "flip", VideoModality, None, "pan"),
    "flip without caption": ("flip", "flip", TextModality, None, "caption"),
    "time crop with late sound": ("time crop", "time_crop", AudioModality, late, "sync"),
    "speed of frames only": ("speed", "speed", AudioModality, None, "sync"),
    "speed of sound only": ("speed", "speed", VideoModality, None, "sync"),
    "reversed frames only": ("reverse", "reverse", AudioModality, None, "sync"),
    "reversed sound only": ("reverse", "reverse", VideoModality, None, "sync"),
    "rolled sound only": ("roll", "roll", VideoModality, None, "sync"),
    "rolled frames only": ("roll", "roll", AudioModality, None, "sync"),
    "crop without pan": ("crop", "crop", AudioModality, None, "pan"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_variant_is_caught(world: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operation, kind, modality, kernel, relation = BROKEN[name]
    broken = identity("broken on purpose") if kernel is None else Kernel(kernel)
    monkeypatch.setitem(modality.kernels, kind, broken)
    share, told = score(world, OPERATIONS[operation], 120, applied=True)[relation]
    assert told >= 20
    assert share <= 0.6, f"{name}: {relation} still holds in {share:.3f} of {told} seeds"
