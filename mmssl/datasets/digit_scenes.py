"""Synthetic data set: scenes of one or two real handwritten digits as picture, captions and stereo sound, generated offline.

The handwriting is scikit-learn's bundled `load_digits`: 1,797 scans of 8 x 8 (Alpaydin and Kaynak, Optical Recognition of
Handwritten Digits, UCI 1998). Half of the scenes show one digit, half show two (70 % side by side, 30 % one above the other).
Train, validation and test use disjoint scans, and some pairs of digits never meet in training. A scene is a pure function of
(seed, split, number).

A sample has `key.jpg key.txt key.wav key.json`, and `key.cls` if the scene has one digit. `.txt` is one caption; `.json` is the
latents (see `digit_render.Scene`) and, under "captions", every true paraphrase.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.core.seeding import generator
from mmssl.data.shards.writer import Manifest, Progress
from mmssl.datasets.digit_render import (
    CLASS_NAMES,
    TEMPLATES,
    Digit,
    Scene,
    captions,
    render_image,
    render_sound,
    to_wav,
)
from mmssl.datasets.splits import rounded_uniform, write_splits

__all__ = ["CLASS_NAMES", "HELD_OUT", "SPLITS", "TEMPLATES", "load_scans", "sample_scene", "split_scans", "write"]

VERSION = 1  # raise it when equal settings give other bytes: old folders are then rewritten

SPLITS = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Share of each digit's scans."""

HELD_OUT = frozenset(
    [(a, b) for pair in ((0, 4), (1, 7), (2, 5), (3, 8), (6, 9)) for a, b in (pair, pair[::-1])]  # in either order
    + [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]  # in this order only; the reverse is in training
)
"""Ordered pairs (left or upper, right or lower) that are in validation and test only."""

ONE_DIGIT_SHARE = 0.5
ROW_SHARE = 0.7  # of scenes with two digits
HELD_OUT_SHARE = 1 / 3  # of scenes with two digits in validation and test
SECONDS = 1.0
RATE = 8000  # the sample rate of telephony; key tones reach up to 1,477 Hz
QUALITY = 95


@functools.lru_cache(maxsize=1)
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's bundled digits: ink [1797, 8, 8] from 0 to 1, and labels [1797]."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    return (bundle.images / 16).astype(np.float32), bundle.target.astype(np.int64)


@functools.lru_cache(maxsize=4)
def split_scans(seed: int = 0) -> Mapping[str, tuple[np.ndarray, ...]]:
    """Split the scans: split -> rows by label. Splits are disjoint, with the same share of every digit."""
    labels = load_scans()[1]
    edges = np.cumsum([0.0, *SPLITS.values()])
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in range(10):
        rows = generator(seed, "scans", label).permutation(np.flatnonzero(labels == label))
        for split, start, stop in zip(SPLITS, edges[:-1], edges[1:], strict=True):
            parts[split].append(rows[round(start * len(rows)) : round(stop * len(rows))])
    return {split: tuple(rows) for split, rows in parts.items()}


def sample_scene(split: str, number: int, seed: int = 0) -> Scene:
    """Draw the latents of one scene; a pure function of (seed, split, number).

    Raises:
        ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"got split {split!r}, wanted one of {list(SPLITS)}")
    rng = generator(seed, "scene", split, number)
    single = int((number + 1) * ONE_DIGIT_SHARE) > int(number * ONE_DIGIT_SHARE)
    layout = "single" if single else ("row" if rng.random() < ROW_SHARE else "column")
    labels = (int(rng.integers(10)),) if single else _draw_pair(rng, split)
    boxes = _draw_single(rng) if single else _draw_two(rng, layout)
    dark_ink = bool(rng.random() < 0.5)
    paper = draw_colour(rng, light=dark_ink)
    digits = []
    for label, (x, y, size), (begin, end) in zip(labels, boxes, _draw_times(rng, len(labels)), strict=True):
        scan = int(rng.choice(split_scans(seed)[split][label]))
        digits.append(Digit(label, scan, x, y, size, draw_colour(rng, light=not dark_ink), begin, end))
    draft = Scene(
        split=split,
        layout=layout,
        digits=tuple(digits),
        paper=paper,
        held_out_pair=tuple(labels) in HELD_OUT,
        level=rounded_uniform(rng, 0.4, 0.9),
        seconds=SECONDS,
        form=0,
        noise=int(rng.integers(2**31)),
    )
    return Scene(**{**vars(draft), "form": int(rng.integers(len(captions(draft))))})


def encode_scene(scene: Scene, key: str, size: int = 64) -> dict[str, Any]:
    """Encode a scene as a sample of a shard: {"__key__": key, extension: bytes}."""
    import simplejpeg

    sentences = captions(scene)
    digits = [{**vars(digit), "name": CLASS_NAMES[digit.label]} for digit in scene.digits]
    document = {**vars(scene), "digits": digits, "captions": sentences, "rate": RATE, "image_size": size}
    image = render_image(scene, load_scans()[0], size)
    sample: dict[str, Any] = {
        "__key__": key,
        "jpg": simplejpeg.encode_jpeg(image, quality=QUALITY, colorspace="RGB", colorsubsampling="444"),
        "txt": sentences[scene.form].encode(),
        "wav": to_wav(render_sound(scene, RATE), RATE),
        "json": json.dumps(document, sort_keys=True, separators=(",", ":")).encode(),
    }
    if scene.layout == "single":
        sample["cls"] = str(scene.digits[0].label).encode()
    return sample


def write(
    out_dir: str | Path,
    *,
    train: int = 8000,
    validation: int = 400,
    test: int = 1200,
    seed: int = 0,
    shards: int = 8,
    size: int = 64,
    progress: Progress | None = None,
) -> Manifest:
    """Write `out_dir/{train,validation,test}/{000000...}.tar` and a manifest; intact shards are kept.

    Args:
        out_dir: folder; created if needed.
        train, validation, test: number of scenes of each split; 0: no such split.
        seed: seed of all random draws.
        shards: tar files of each split (fewer if a split has fewer scenes).
        size: H = W of the pictures in pixels.
        progress: called with (scenes done, scenes in all).

    Returns:
        The manifest; `manifest.paths` are the tar files, the folders are `out_dir/<split>`.

    Raises:
        ValueError: a negative count, or nothing to write.
        DataError: the folder holds foreign tar files, or is not writable.
    """
    counts = {"train": train, "validation": validation, "test": test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or shards < 1 or size < 16:
        raise ValueError(
            f"got {counts}, {shards} shards, size {size}; wanted scenes, at least 1 shard, at least 16 pixels"
        )
    settings = {"writer": "digit_scenes", "version": VERSION, **counts, "seed": seed, "shards": shards, "size": size}

    def encoded(split: str, number: int, key: str) -> dict[str, Any]:
        return encode_scene(sample_scene(split, number, seed), key, size)

    return write_splits(Path(out_dir), settings, counts, shards, encoded, progress)


def _draw_pair(rng: np.random.Generator, split: str) -> tuple[int, int]:
    """Two digits in reading order: a training pair, or outside training sometimes a held-out pair."""
    apart = split != "train" and rng.random() < HELD_OUT_SHARE
    pairs = _PAIRS[apart]
    return pairs[int(rng.integers(len(pairs)))]


def _draw_single(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centre and size of one digit that fits into the picture."""
    size = rounded_uniform(rng, 0.4, 0.85)
    return [(rounded_uniform(rng, size / 2, 1 - size / 2), rounded_uniform(rng, size / 2, 1 - size / 2), size)]


def _draw_two(rng: np.random.Generator, layout: str) -> list[tuple[float, float, float]]:
    """Centres and sizes of two digits that do not overlap: along the layout 0.35 apart or more, across it 0.24 or less."""
    boxes = []
    for half in (0.0, 0.5):
        size = rounded_uniform(rng, 0.35, 0.5)
        along = rounded_uniform(rng, half + size / 2, half + 0.5 - size / 2)
        across = rounded_uniform(rng, 0.38, 0.62)
        boxes.append((along, across, size) if layout == "row" else (across, along, size))
    return boxes


def _draw_times(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Begin and end of each digit's tone, in random order, without overlap."""
    if count == 1:
        begin = rounded_uniform(rng, 0.05, 0.5)
        return [(begin, round(begin + rounded_uniform(rng, 0.3, 0.45), 3))]
    slots = []
    for earliest in (0.05, 0.55):
        begin = rounded_uniform(rng, earliest, earliest + 0.1)
        slots.append((begin, round(begin + rounded_uniform(rng, 0.2, 0.3), 3)))
    return slots if rng.random() < 0.5 else slots[::-1]


def draw_colour(rng: np.random.Generator, *, light: bool) -> tuple[int, int, int]:
    """Draw a colour of any hue that is clearly light or clearly dark: luma at least 0.7, or at most 0.3 (ITU-R BT.601 weights)."""
    luma = rng.uniform(0.7, 0.92) if light else rng.uniform(0.05, 0.3)
    colour = rng.uniform(0, 1, 3)
    own = float(colour @ (0.299, 0.587, 0.114))
    # Towards black or white along a straight line, which keeps the hue and every channel within 0 to 1.
    colour = colour * luma / own if luma < own else 1 - (1 - colour) * (1 - luma) / (1 - own)
    red, green, blue = (round(float(channel) * 255) for channel in colour)
    return red, green, blue


_PAIRS = {
    apart: [(a, b) for a in range(10) for b in range(10) if ((a, b) in HELD_OUT) == apart] for apart in (False, True)
}
