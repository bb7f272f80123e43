"""Packs tri-modal shards of real digits: handwriting (MNIST's idx files), speech (Free Spoken Digit Dataset) and captions.

    python tools/pack_spoken_digits.py --images t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz \
        --speech fsdd-recordings.tar --out shards
    mmssl pretrain tri_modal/spoken_digits data.shards='["shards/train"]'

Scans and recordings are disjoint between splits, and one speaker is held out entirely:

    train                 scans of training, recordings 5 and up of five speakers (each is said several times, to other scans)
    test_seen_speakers    other scans, recordings 0 to 4 of the same five speakers
    test                  other scans, all recordings of the speaker who is held out

Each sample has a picture (.png), a recording (.wav), a caption (.txt), its class (.cls) and where the parts are from (.json).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmssl.core.seeding import generator
from mmssl.data.shards.sidecar import write_sidecar
from mmssl.data.shards.writer import Manifest, claim_folder, remove_stale, write_shard
from mmssl.datasets.digit_render import CLASS_NAMES, TEMPLATES

TEST_SHARE = 0.2  # of the scans of each digit
OWN_TEST = range(5)  # numbers of recordings that the data set's authors set aside for testing
SHARDS = 4
_NAME = re.compile(r"(?:.*/)?(\d)_([a-z]+)_(\d+)\.wav")


class Recording(NamedTuple):
    """One spoken digit."""

    name: str
    digit: int
    speaker: str
    number: int
    wav: bytes


class Row(NamedTuple):
    """The parts of one sample."""

    scan: int
    recording: Recording
    form: int


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file of bytes, gzipped or not.

    Raises:
        SystemExit: not an idx file of bytes.
    """
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    if data[:4] != bytes((0, 0, 8, dimensions)):
        sys.exit(f"{path} begins with {data[:4]!r}, wanted an idx file of bytes with {dimensions} dimensions")
    shape = np.frombuffer(data, ">i4", dimensions, 4)
    return np.frombuffer(data, np.uint8, int(shape.prod()), 4 + 4 * dimensions).reshape(shape)


def read_speech(path: Path) -> list[Recording]:
    """Read all recordings, sorted by digit, speaker and number.

    Raises:
        SystemExit: there are none.
    """
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            match = _NAME.fullmatch(member.name)
            file = tar.extractfile(member) if match else None
            if match and file:
                found.append(Recording(Path(member.name).name, int(match[1]), match[2], int(match[3]), file.read()))
    if not found:
        sys.exit(f"{path} holds no file named like 7_george_12.wav")
    return sorted(found, key=lambda recording: recording[1:4])


def plan(labels: np.ndarray, speech: list[Recording], held_out: str, seed: int) -> dict[str, list[Row]]:
    """Assign scans to recordings, by split."""
    rows: dict[str, list[Row]] = {"train": [], "test_seen_speakers": [], "test": []}
    for digit in range(10):
        rng = generator(seed, "spoken_digits", digit)
        scans = rng.permutation(np.flatnonzero(labels == digit)).tolist()
        cut = round(TEST_SHARE * len(scans))
        unseen, training = scans[:cut], scans[cut:]
        said = [recording for recording in speech if recording.digit == digit]
        parts = {
            "test": [r for r in said if r.speaker == held_out],
            "test_seen_speakers": [r for r in said if r.speaker != held_out and r.number in OWN_TEST],
        }
        for split, recordings in parts.items():
            if len(recordings) > len(unseen):
                sys.exit(f"{len(unseen)} scans of {digit} remain for {len(recordings)} recordings of {split}")
            rows[split] += [Row(unseen.pop(), recording, int(rng.integers(len(TEMPLATES)))) for recording in recordings]
        pool = [r for r in said if r.speaker != held_out and r.number not in OWN_TEST]
        order = [int(i) for _ in range(-(-len(training) // len(pool))) for i in rng.permutation(len(pool))]
        for scan, i in zip(training, order, strict=False):
            rows["train"].append(Row(scan, pool[i], int(rng.integers(len(TEMPLATES)))))
    return {
        split: [part[i] for i in generator(seed, "spoken_digits", split).permutation(len(part))]
        for split, part in rows.items()
    }


def samples(split: str, rows: list[Row], start: int, pictures: np.ndarray) -> Iterator[dict[str, Any]]:
    """Samples for the shard writer."""
    for number, (scan, recording, form) in enumerate(rows, start):
        picture = io.BytesIO()
        Image.fromarray(pictures[scan]).save(picture, "PNG")
        source = {"scan": scan, "recording": recording.name, "speaker": recording.speaker, "digit": recording.digit}
        yield {
            "__key__": f"{split}-{number:06d}",
            "png": picture.getvalue(),
            "wav": recording.wav,
            "txt": TEMPLATES[form].format(CLASS_NAMES[recording.digit]).encode(),
            "cls": str(recording.digit).encode(),
            "json": json.dumps(source, sort_keys=True).encode(),
        }


def main() -> None:
    """Read arguments, and write the shards of both splits with their sidecars and manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="idx3 file of pictures, gzipped or not")
    parser.add_argument("--labels", type=Path, required=True, help="idx1 file of their labels")
    parser.add_argument("--speech", type=Path, required=True, help="tar file of recordings, 7_george_12.wav and so on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--held-out", default="theo", help="the speaker that training never hears")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    pictures, labels = read_idx(arguments.images, 3), read_idx(arguments.labels, 1)
    speech = read_speech(arguments.speech)
    speakers = sorted({recording.speaker for recording in speech})
    if arguments.held_out not in speakers or len(pictures) != len(labels):
        sys.exit(
            f"got {len(pictures)} pictures, {len(labels)} labels and the speaker {arguments.held_out!r} of {speakers}"
        )
    claim_folder(arguments.out)
    records = []
    for split, rows in plan(labels, speech, arguments.held_out, arguments.seed).items():
        for part in range(SHARDS):
            start, stop = part * len(rows) // SHARDS, (part + 1) * len(rows) // SHARDS
            name = f"{split}/{part:06d}.tar"
            records.append(
                write_shard(arguments.out, name, start, stop, samples(split, rows[start:stop], start, pictures))
            )
            write_sidecar(arguments.out / name)
        print(f"{split}: {len(rows)} samples")
    remove_stale(arguments.out, [record.path for record in records])
    settings = {"writer": "pack_spoken_digits", "held_out": arguments.held_out, "seed": arguments.seed}
    Manifest(arguments.out, settings, tuple(records), formats={"txt": "whole"}).write()


if __name__ == "__main__":
    main()
