"""Synthetic data set: pictures of land from above in four bands (blue, green, red, near infrared) with captions, generated offline.

Reflectances are typical ones of land covers, times 10,000, as the products of Sentinel-2 store them. Healthy and dry plants look
alike but in the near infrared. No side is up. A scene is a pure function of (seed, split, number).

A sample has `key.npy` (uint16 [band, height, width]), `key.txt` (one caption), `key.cls` (the land cover) and `key.json` (what was
drawn).
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.core.seeding import generator
from mmssl.data.shards.writer import Manifest, Progress
from mmssl.datasets.splits import rounded_uniform, write_splits

VERSION = 1  # raise it when equal settings give other bytes: old folders are then rewritten
BANDS = ("blue", "green", "red", "near infrared")
CLASS_NAMES = ("open water", "forest", "healthy fields", "dry fields", "bare soil", "town", "snow", "marsh")
SPECTRA = np.array(
    [
        [600, 550, 350, 150],
        [280, 450, 300, 3000],
        [420, 750, 500, 3300],
        [430, 740, 520, 1500],
        [1200, 1700, 2200, 2900],
        [1300, 1450, 1550, 1900],
        [8300, 8400, 8200, 7600],
        [500, 600, 450, 900],
    ]
)
"""Reflectance of each land cover in each band, times 10,000."""
FEATURES = ("", "a river", "a road", "clouds")
UNSEEN = frozenset({("open water", "a river"), ("open water", "a road"), ("snow", "clouds")})
"""Covers and features that are not drawn together, as they could not be told."""
TEMPLATES = ("{} from above", "a satellite picture of {}", "{}")


@dataclass(frozen=True)
class Land:
    """What one scene is made from.

    Attributes:
        label: number of the land cover in CLASS_NAMES.
        feature: number in FEATURES of what crosses or covers it.
        light: factor of all reflectances.
        form: number of the caption's form.
        noise: seed of everything else.
    """

    label: int
    feature: int
    light: float
    form: int
    noise: int


def sample_land(split: str, number: int, seed: int = 0) -> Land:
    """Draw a scene."""
    rng = generator(seed, "land", split, number)
    label, feature = int(rng.integers(len(CLASS_NAMES))), int(rng.integers(len(FEATURES)))
    feature = 0 if (CLASS_NAMES[label], FEATURES[feature]) in UNSEEN else feature
    form, noise = int(rng.integers(len(TEMPLATES))), int(rng.integers(2**31))
    return Land(label, feature, rounded_uniform(rng, 0.7, 1.3), form, noise)


def captions(land: Land) -> tuple[str, ...]:
    """Every true caption of a scene."""
    feature = FEATURES[land.feature]
    cover = CLASS_NAMES[land.label] + (f" with {feature}" if feature else "")
    return tuple(template.format(cover) for template in TEMPLATES)


def render(land: Land, size: int = 48) -> np.ndarray:
    """Make the picture: uint16 [band, size, size]."""
    rng = generator(land.noise, "render")
    texture = 1 + 0.15 * _smooth(rng, size, 6) + 0.05 * rng.standard_normal((size, size))
    name = CLASS_NAMES[land.label]
    if name in ("healthy fields", "dry fields"):
        texture *= 1 + 0.15 * np.sign(np.sin(2 * np.pi * _along(rng, size) * rounded_uniform(rng, 4, 8)))
    if name == "town":
        across = _along(rng, size, 2)
        texture *= np.where((across * rounded_uniform(rng, 6, 9) % 1 < 0.3).any(axis=0), 0.6, 1.2)
    if name == "marsh":
        texture *= np.where(_smooth(rng, size, 10) > 0, 1.5, 0.5)
    picture = SPECTRA[land.label][:, None, None] * texture
    feature = FEATURES[land.feature]
    if feature in ("a river", "a road"):
        bend = 0.06 * _smooth(rng, size, 3) if feature == "a river" else 0.0
        near = np.abs(_along(rng, size) + bend - rounded_uniform(rng, -0.2, 0.2)) < (
            0.06 if feature == "a river" else 0.03
        )
        spectrum = [500, 450, 300, 120] if feature == "a river" else [2300, 2400, 2500, 2600]
        picture = np.where(near, np.array(spectrum)[:, None, None], picture)
    if feature == "clouds":
        cover = np.clip(_smooth(rng, size, 4) * 0.8, 0, 1)
        picture = picture * (1 - cover) + cover * np.array([6500, 6500, 6500, 6600])[:, None, None]
    picture = land.light * picture + 30 * rng.standard_normal(picture.shape)
    made: np.ndarray = np.clip(np.rint(picture), 0, 65535).astype(np.uint16)
    return made


def write(
    out_dir: str | Path,
    *,
    train: int = 4000,
    validation: int = 200,
    test: int = 800,
    seed: int = 0,
    shards: int = 4,
    size: int = 48,
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

    Raises:
        ValueError: a negative count, or nothing to write.
        DataError: the folder holds foreign tar files, or is not writable.
    """
    counts = {"train": train, "validation": validation, "test": test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or shards < 1 or size < 16:
        raise ValueError(f"got {counts}, {shards} shards, size {size}; wanted scenes, at least 1 shard, 16 pixels")
    settings = {"writer": "land", "version": VERSION, **counts, "seed": seed, "shards": shards, "size": size}

    def encoded(split: str, number: int, key: str) -> dict[str, Any]:
        return encode_land(sample_land(split, number, seed), key, size)

    return write_splits(Path(out_dir), settings, counts, shards, encoded, progress)


def encode_land(land: Land, key: str, size: int = 48) -> dict[str, Any]:
    """Encode a scene as a sample of a shard: {"__key__": key, extension: bytes}."""
    file = io.BytesIO()
    np.save(file, render(land, size))
    texts = captions(land)
    document = {**asdict(land), "name": CLASS_NAMES[land.label], "bands": BANDS, "captions": texts}
    return {
        "__key__": key,
        "npy": file.getvalue(),
        "txt": texts[land.form].encode(),
        "cls": str(land.label).encode(),
        "json": json.dumps(document, sort_keys=True, separators=(",", ":")).encode(),
    }


def _smooth(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise [size, size] of about unit deviation: bilinear between random heights of a coarse grid."""
    heights = rng.standard_normal((cells + 1, cells + 1))
    places = np.linspace(0, cells, size)
    rows = np.stack([np.interp(places, np.arange(cells + 1), row) for row in heights])
    made: np.ndarray = 1.5 * np.stack([np.interp(places, np.arange(cells + 1), column) for column in rows.T], axis=1)
    return made


def _along(rng: np.random.Generator, size: int, axes: int = 1) -> np.ndarray:
    """Coordinate in a random direction, -0.5 to 0.5, [size, size]; of 2 axes also the one at right angles, [2, size, size]."""
    angle = float(rng.uniform(0, np.pi))
    y, x = np.meshgrid(*[np.linspace(-0.5, 0.5, size)] * 2, indexing="ij")
    first = np.cos(angle) * x + np.sin(angle) * y
    return first if axes == 1 else np.stack([first, np.cos(angle) * y - np.sin(angle) * x])
