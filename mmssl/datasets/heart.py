"""Synthetic data set: electrocardiograms (ECG) of eight rhythms with captions, generated offline. No medical claim is made.

A beat is a sum of Gaussian waves P, Q, R, S and T, after McSharry et al. 2003 (IEEE Trans. Biomed. Eng. 50(3), table I), whose
places after the R wave stretch with the square root of the beat's length. Heights and widths belong to a patient; patients of
train, validation and test are disjoint. A record is a pure function of (seed, split, number).

A sample has `key.npy` (int16 [time, lead] in microvolts), `key.txt` (one caption), `key.cls` (the rhythm) and `key.json` (what was
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
RATE, SECONDS = 100, 6.0
LEADS = ("I", "II", "V1")
PATIENTS = {"train": 400, "validation": 50, "test": 100}
CLASS_NAMES = (
    "sinus rhythm",
    "sinus bradycardia",
    "sinus tachycardia",
    "atrial fibrillation",
    "atrial flutter",
    "first degree block",
    "bundle branch block",
    "ventricular bigeminy",
)
RATES = ((60, 95), (40, 52), (110, 145), (60, 130), (70, 80), (55, 85), (60, 95), (60, 85))
"""Range of beats a minute of each class."""
TEMPLATES = ("an ECG of {}", "{}", "a recording of {}", "the heart shows {}")
_WAVES = {
    "P": (-0.17, 0.025, 0.15),
    "Q": (-0.035, 0.010, -0.12),
    "R": (0.0, 0.011, 1.0),
    "S": (0.033, 0.010, -0.25),
    "T": (0.26, 0.045, 0.3),
}
"""Wave -> seconds after the R wave at 60 beats a minute, width in seconds, height in millivolts."""
_LEADS = {
    "P": (0.7, 1.0, 0.4),
    "Q": (0.8, 1.0, 0.0),
    "R": (0.7, 1.0, 0.25),
    "S": (0.6, 1.0, 3.0),
    "T": (0.7, 1.0, -0.3),
}
"""Wave -> factor of its height in each lead."""


@dataclass(frozen=True)
class HeartRecord:
    """What one recording is made from.

    Attributes:
        label: number of the rhythm in CLASS_NAMES.
        rate: beats a minute.
        patient: number of the patient, whose split it determines.
        form: number of the caption's form.
        noise: seed of everything else.
    """

    label: int
    rate: int
    patient: int
    form: int
    noise: int


def sample_record(split: str, number: int, seed: int = 0) -> HeartRecord:
    """Draw a record."""
    rng = generator(seed, "heart", split, number)
    label = int(rng.integers(len(CLASS_NAMES)))
    low, high = RATES[label]
    first = sum(count for name, count in PATIENTS.items() if list(PATIENTS).index(name) < list(PATIENTS).index(split))
    patient = first + int(rng.integers(PATIENTS[split]))
    rate, form = int(rng.integers(low, high + 1)), int(rng.integers(2 * len(TEMPLATES)))
    return HeartRecord(label, rate, patient, form, int(rng.integers(2**31)))


def captions(record: HeartRecord) -> tuple[str, ...]:
    """Every true caption of a record: with and without its rate, rounded to tens."""
    plain = tuple(template.format(CLASS_NAMES[record.label]) for template in TEMPLATES)
    return (*plain, *(f"{text}, about {round(record.rate, -1)} beats a minute" for text in plain))


def render(record: HeartRecord, seed: int = 0) -> np.ndarray:
    """Make the recording: int16 [time, lead] in microvolts."""
    rng = generator(seed, "beats", record.noise)
    name = CLASS_NAMES[record.label]
    t = np.arange(round(RATE * SECONDS)) / RATE
    waves = _patient(record.patient, seed)
    if name == "first degree block":
        waves["P"][0] -= rounded_uniform(rng, 0.12, 0.18)
    if name == "bundle branch block":
        waves["R"][1], waves["S"][0], waves["S"][1] = 0.035, 0.085, 0.03
    if name in ("atrial fibrillation", "atrial flutter"):
        waves["P"][2] = 0.0
    wave = np.zeros((len(t), len(LEADS)))
    for beat, length, early in _beats(name, record.rate, rng):
        for letter, (place, width, height) in waves.items():
            if early and letter == "P":
                continue  # a premature ventricular beat is wide, high and has no P wave
            stretch = np.sqrt(min(length, 1.2)) if place < 0 or letter == "T" else 1.0
            wide, high = (3.0, -1.3 if letter == "T" else 1.6) if early else (1.0, 1.0)
            bump = height * high * np.exp(-0.5 * ((t - beat - place * stretch) / (width * wide)) ** 2)
            wave += bump[:, None] * np.array(_LEADS[letter])
    wave += _atria(name, t, rng)[:, None] * np.array([0.5, 1.0, 1.0])
    drift = rounded_uniform(rng, 0.02, 0.15) * np.sin(
        2 * np.pi * rounded_uniform(rng, 0.15, 0.4) * t + rounded_uniform(rng, 0, 6.28)
    )
    wave += drift[:, None] + rounded_uniform(rng, 0.01, 0.04) * rng.standard_normal(wave.shape)
    return np.clip(np.rint(1000 * wave), -32768, 32767).astype(np.int16)


def write(
    out_dir: str | Path,
    *,
    train: int = 4000,
    validation: int = 200,
    test: int = 800,
    seed: int = 0,
    shards: int = 4,
    progress: Progress | None = None,
) -> Manifest:
    """Write `out_dir/{train,validation,test}/{000000...}.tar` and a manifest; intact shards are kept.

    Args:
        out_dir: folder; created if needed.
        train, validation, test: number of records of each split; 0: no such split.
        seed: seed of all random draws.
        shards: tar files of each split (fewer if a split has fewer records).
        progress: called with (records done, records in all).

    Raises:
        ValueError: a negative count, or nothing to write.
        DataError: the folder holds foreign tar files, or is not writable.
    """
    counts = {"train": train, "validation": validation, "test": test}
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or shards < 1:
        raise ValueError(f"got {counts} and {shards} shards, wanted records, and at least 1 shard")
    settings = {"writer": "heart", "version": VERSION, **counts, "seed": seed, "shards": shards}

    def encoded(split: str, number: int, key: str) -> dict[str, Any]:
        return encode_record(sample_record(split, number, seed), key, seed)

    return write_splits(Path(out_dir), settings, counts, shards, encoded, progress)


def encode_record(record: HeartRecord, key: str, seed: int = 0) -> dict[str, Any]:
    """Encode a record as a sample of a shard: {"__key__": key, extension: bytes}."""
    file = io.BytesIO()
    np.save(file, render(record, seed))
    texts = captions(record)
    document = {**asdict(record), "name": CLASS_NAMES[record.label], "rate_hz": RATE, "leads": LEADS, "captions": texts}
    return {
        "__key__": key,
        "npy": file.getvalue(),
        "txt": texts[record.form].encode(),
        "cls": str(record.label).encode(),
        "json": json.dumps(document, sort_keys=True, separators=(",", ":")).encode(),
    }


def _patient(number: int, seed: int) -> dict[str, list[float]]:
    """Wave -> place, width, height of a patient."""
    rng = generator(seed, "patient", number)
    return {
        letter: [
            place * rounded_uniform(rng, 0.9, 1.1),
            width * rounded_uniform(rng, 0.85, 1.2),
            height * rounded_uniform(rng, 0.6, 1.4),
        ]
        for letter, (place, width, height) in _WAVES.items()
    }


def _beats(name: str, rate: int, rng: np.random.Generator) -> list[tuple[float, float, bool]]:
    """Time of each R wave, length of the beat before it, and whether it is premature."""
    usual, beats = 60 / rate, list[tuple[float, float, bool]]()
    spread = 0.2 if name == "atrial fibrillation" else 0.005 if name == "atrial flutter" else 0.03
    time = -float(rng.uniform(0, usual))
    early = bool(rng.random() < 0.5)
    while time < SECONDS + 1:
        length = usual * float(np.clip(1 + spread * rng.standard_normal(), 0.5, 1.7))
        if name == "ventricular bigeminy":
            early = not early
            length *= 0.6 if early else 1.4
        time += length
        beats.append((time, length, early and name == "ventricular bigeminy"))
    return beats


def _atria(name: str, t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Waves of fibrillating or fluttering atria in millivolts, [time]; zero in other rhythms."""
    if name == "atrial flutter":  # a sawtooth of 300 a minute
        phase = 5.0 * rounded_uniform(rng, 0.92, 1.08) * t + rounded_uniform(rng, 0, 1)
        return rounded_uniform(rng, 0.1, 0.2) * (1 - 2 * (phase % 1))
    if name == "atrial fibrillation":
        speeds, places = ([rounded_uniform(rng, *low_high) for _ in range(3)] for low_high in ((5, 9), (0, 6.28)))
        waves = np.sin(2 * np.pi * np.outer(speeds, t) + np.array(places)[:, None])
        return rounded_uniform(rng, 0.02, 0.05) * np.asarray(waves.sum(axis=0))
    return np.zeros_like(t)
