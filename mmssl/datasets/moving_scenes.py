"""Synthetic data set of videos: clips of a real handwritten digit that moves, beeps from its position, and flashes with each beep.

The handwriting and its split into disjoint scans is that of `digit_scenes`. A clip is a pure function of (seed, split, number). A
sample has `key.mp4` (or `.webm`, ...), `key.txt`, `key.json` and `key.cls`, and with `wav` also `key.wav`: `.txt` is one
caption, which names digit and side; `.json` is the latents (see `moving_render.MovingScene`) and, under "captions", all captions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.core.seeding import generator
from mmssl.data.media.encode import CONTAINERS, encode_clip, exact_rate, frame_times
from mmssl.data.shards.writer import Manifest, Progress
from mmssl.datasets.digit_render import CLASS_NAMES, to_wav
from mmssl.datasets.digit_scenes import SPLITS, draw_colour, load_scans, split_scans
from mmssl.datasets.moving_render import (
    BEEP_SECONDS,
    MovingScene,
    captions,
    render_frames,
    render_sound,
    side_captions,
)
from mmssl.datasets.splits import rounded_uniform, write_splits

__all__ = ["MOTIONS", "encode_scene", "sample_scene", "write"]

VERSION = 2  # raise it when equal settings give other bytes: old folders are then rewritten

MOTIONS = ("left", "right", "leftward", "rightward")
"""See `MovingScene.motion`; all are equally frequent."""

GAP = 0.35  # minimum seconds between the middles of two beeps
MARGIN = 0.12  # minimum seconds before the middle of the first beep, and after that of the last
MAX_BEATS = 4
FPS = 15.0
RATE = 16_000
SECONDS = 2.0


def sample_scene(split: str, number: int, seed: int = 0, seconds: float = SECONDS) -> MovingScene:
    """Draw the latents of one clip; a pure function of (seed, split, number, seconds).

    Raises:
        ValueError: no such split, or less than a second.
    """
    if split not in SPLITS or not seconds >= 1:
        raise ValueError(f"got split {split!r} and {seconds} s, wanted one of {list(SPLITS)} and at least 1 s")
    rng = generator(seed, "moving", split, number)
    motion = str(rng.choice(MOTIONS))
    label = int(rng.integers(10))
    size = rounded_uniform(rng, 0.28, 0.38)
    draft = MovingScene(
        split=split,
        motion=motion,
        label=label,
        scan=int(rng.choice(split_scans(seed)[split][label])),
        path=_draw_path(rng, motion, size),
        y=rounded_uniform(rng, size / 2 + 0.02, 0.98 - size / 2),
        size=size,
        ink=draw_colour(rng, light=True),
        paper=draw_colour(rng, light=False),
        beats=_draw_beats(rng, seconds),
        level=rounded_uniform(rng, 0.4, 0.9),
        seconds=seconds,
        form=0,
        noise=int(rng.integers(2**31)),
    )
    return MovingScene(**{**vars(draft), "form": int(rng.integers(len(side_captions(draft))))})


def encode_scene(
    scene: MovingScene,
    key: str,
    *,
    container: str = "mp4",
    size: int = 64,
    fps: float = FPS,
    rate: int = RATE,
    wav: bool = False,
) -> dict[str, Any]:
    """Encode a clip as a sample of a shard: {"__key__": key, extension: bytes}.

    Args:
        container: one of `media.encode.CONTAINERS`.
        size: H = W of the frames in pixels, even.
        fps: frames a second; 29.97 is 30000/1001.
        rate: samples a second, in Hz.
        wav: also write the sound before encoding as `key.wav`.
    """
    sentences = captions(scene)
    sound = render_sound(scene, rate)
    frames = render_frames(scene, load_scans()[0], frame_times(scene.seconds, fps), size)
    document = {
        **vars(scene),
        "name": CLASS_NAMES[scene.label],
        "captions": sentences,
        "fps": str(exact_rate(fps)),
        "rate": rate,
        "image_size": size,
    }
    sample: dict[str, Any] = {
        "__key__": key,
        container: encode_clip(container, frames, sound, fps=fps, rate=rate),
        "txt": sentences[scene.form].encode(),
        "json": json.dumps(document, sort_keys=True, separators=(",", ":")).encode(),
        "cls": str(scene.label).encode(),
    }
    return {**sample, "wav": to_wav(sound, rate)} if wav else sample


def write(
    out_dir: str | Path,
    *,
    train: int = 2000,
    validation: int = 200,
    test: int = 400,
    seed: int = 0,
    shards: int = 4,
    container: str = "mp4",
    size: int = 64,
    seconds: float = SECONDS,
    fps: float = FPS,
    rate: int = RATE,
    wav: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write `out_dir/{train,validation,test}/{000000...}.tar` and a manifest; intact shards are kept.

    Args:
        out_dir: folder; created if needed.
        train, validation, test: number of clips of each split; 0: no such split.
        seed: seed of all random draws.
        shards: tar files of each split (fewer if a split has fewer clips).
        container, size, fps, rate, wav: see `encode_scene`.
        seconds: length of every clip.
        progress: called with (clips done, clips in all).

    Raises:
        ValueError: a setting outside its range.
        DataError: the folder holds foreign tar files, or is not writable.
    """
    counts = {"train": train, "validation": validation, "test": test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or shards < 1:
        raise ValueError(f"got {counts} and {shards} shards, wanted clips, and at least 1 shard")
    if container not in CONTAINERS or size < 32 or size % 2 or not 1 <= fps <= 120 or not seconds >= 1:
        raise ValueError(
            f"got {container!r}, {size} pixels, {fps} frames a second, {seconds} s; wanted one of {list(CONTAINERS)}, "
            "an even number of at least 32 pixels, 1 to 120 frames a second, and at least 1 s"
        )
    settings = {
        "writer": "moving_scenes",
        "version": VERSION,
        **counts,
        **{"seed": seed, "shards": shards, "container": container, "size": size},
        **{"seconds": seconds, "fps": fps, "rate": rate, "wav": wav},
    }

    def encoded(split: str, number: int, key: str) -> dict[str, Any]:
        scene = sample_scene(split, number, seed, seconds)
        return encode_scene(scene, key, container=container, size=size, fps=fps, rate=rate, wav=wav)

    return write_splits(Path(out_dir), settings, counts, shards, encoded, progress)


def _draw_path(rng: np.random.Generator, motion: str, size: float) -> tuple[float, float]:
    """Draw x at the beginning and at the end: at least 0.1 from the middle, so that side and direction are unambiguous."""
    near = (rounded_uniform(rng, size / 2 + 0.02, 0.4), rounded_uniform(rng, size / 2 + 0.02, 0.4))
    left, right = (near[0], near[1]), (round(1 - near[0], 3), round(1 - near[1], 3))
    paths = {"left": left, "right": right, "leftward": (right[0], left[1]), "rightward": (left[0], right[1])}
    return paths[motion]


def _draw_beats(rng: np.random.Generator, seconds: float) -> tuple[float, ...]:
    """Draw times at least `GAP` apart, otherwise uniform: their distances identify them."""
    room = seconds - 2 * MARGIN - BEEP_SECONDS
    count = int(rng.integers(2, max(2, min(MAX_BEATS, int(room / (1.2 * GAP)) + 1)) + 1))
    free = np.sort(rng.uniform(0, room - (count - 1) * GAP, count))
    return tuple(round(MARGIN + BEEP_SECONDS / 2 + float(start) + i * GAP, 3) for i, start in enumerate(free))
