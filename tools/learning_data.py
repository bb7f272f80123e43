"""Data of `learning.py` as shards: photographs (CIFAR-10), spoken digits (FSDD), their envelopes, pairs of them and written digits
(MNIST), clips of moving digits, sentences of the documentation of Python, synthetic electrocardiograms."""

from __future__ import annotations

import ast
import io
import re
import sysconfig
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pack_spoken_digits import OWN_TEST, Row, plan, read_idx, read_speech, samples

from mmssl.core.seeding import generator
from mmssl.data.shards.writer import write_shard
from mmssl.datasets import heart, moving_scenes

Samples = Iterator[dict[str, Any]]

MODALITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "pictures": ("image", {"kind": "image", "size": 32}),
    "speech": ("audio", {"kind": "audio", "rate": 8000, "seconds": 0.49, "channels": "mono", "pad": "zero"}),
    "sentences": ("text", {"kind": "text", "tokenizer": {"kind": "clip", "context_length": 32}}),
    "rhythms": (
        "series", {"kind": "series", "axes": ["time", "channel"], "rate": 100, "channels": 3, "seconds": 5.0},
    ),
    "digits": ("audio", {"kind": "audio", "rate": 8000, "seconds": 0.49, "channels": "mono", "pad": "zero"}),
    "clips": ("video", {"kind": "video", "size": 32, "frames": 8, "seconds": 1.6, "fps": 5.0}),
    "envelopes": (
        "series", {"kind": "series", "axes": ["time", "channel"], "rate": 100, "channels": 4, "seconds": 0.64},
    ),
}  # fmt: skip
"""Data -> its modality, and the settings of that without views."""
BESIDE: dict[str, dict[str, Any]] = {"digits": {"image": {"kind": "image", "size": 32}}}
"""Data -> further modalities, and their settings without views."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
NOT_PROSE = re.compile(r"\s|[-+*]\s|.*(::=|>>>|\*\*\*|---|===|\|)", re.DOTALL)
SPEECH = "fsdd-recordings.tar"
SCANS = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
HELD_OUT = "theo"
"""The speaker who is not in `train` of digits."""
NEW_RHYTHMS = ("atrial fibrillation", "atrial flutter", "first degree block", "bundle branch block")
"""Rhythms of `mmssl.datasets.heart` that pretraining does not see."""
NEW_SPEAKERS = ("theo", "yweweler")
"""Speakers whose envelopes are the test."""
FEW = 2000
"""Pictures of `few`, for objectives that must see each many times."""
BANDS = (0, 500, 1000, 2000, 4000)
"""Borders of the frequency bands of envelopes, in Hz."""
OTHERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
"""Folders of the standard library that are left out: those of tests, and of what is not in every installation."""


def pack(data: str, source: Path, folder: Path, train: int, test: int) -> None:
    """Write the data of a row as `train`, `test` and so on below a folder.

    Args:
        data: a key of `MODALITIES`.
        source: folder of the files of pictures and speech.
        folder: of the shards.
        train, test: most pictures of each split; the other data are taken whole.
    """
    if data == "sentences":
        pack_sentences(folder)
    elif data == "rhythms":
        pack_rhythms(folder, 4000, 2000)
    elif data == "envelopes":
        pack_envelopes(source / SPEECH, folder)
    elif data == "digits":
        pack_digits(source, folder)
    elif data == "clips":
        pack_clips(folder, 2000, 800)
    elif data == "pictures":
        pack_pictures(source / "cifar10-train.npz", folder / "few", min(train, FEW))
    for split, count in (("train", train), ("test", test)):
        if data == "pictures":
            pack_pictures(source / f"cifar10-{split}.npz", folder / split, count)
        elif data == "speech":
            pack_speech(source / SPEECH, folder / split, split)


def pack_pictures(source: Path, folder: Path, count: int, caption: Callable[[int, int], str] | None = None) -> None:
    """Write the first pictures of an npz file with their labels, and captions of (number, class), as one shard."""
    arrays = np.load(source)
    jpeg, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]

    def samples() -> Samples:
        for i in range(min(count, len(labels))):
            picture = jpeg[offsets[i] : offsets[i + 1]].tobytes()
            text = {} if caption is None else {"txt": caption(i, int(labels[i])).encode()}
            yield {"__key__": f"{i:05d}", "jpg": picture, "cls": str(labels[i]).encode(), **text}

    write_shard(folder, "000000.tar", 0, count, samples())


def pack_speech(source: Path, folder: Path, split: str) -> None:
    """Write the recordings of a split of the Free Spoken Digit Dataset (0 to 4 of each speaker are its test) with their digits."""
    kept = [one for one in read_speech(source) if (one.number in OWN_TEST) == (split == "test")]
    samples = ({"__key__": one.name[:-4], "wav": one.wav, "cls": str(one.digit).encode()} for one in kept)
    write_shard(folder, "000000.tar", 0, len(kept), samples)


def pack_digits(source: Path, folder: Path) -> None:
    """Write digits that are written and said, as `pack_spoken_digits.py` pairs them: `train`, `test` of speakers who are in it, and
    `mismatched`, the sounds of `test` with scans of another digit.
    """
    pictures, labels = (read_idx(next(source.glob(f"*{name}")), n) for name, n in zip(SCANS, (3, 1), strict=True))
    rows = plan(labels, read_speech(source / SPEECH), HELD_OUT, 0)
    test = rows["test_seen_speakers"]
    of_digit = {digit: [row.scan for row in test if row.recording.digit == digit] for digit in range(10)}
    wrong = [
        Row(other[i % len(other)], row.recording, row.form)
        for i, row in enumerate(test)
        for other in [of_digit[(row.recording.digit + 1 + i % 9) % 10]]
    ]
    for name, kept in (("train", rows["train"]), ("test", test), ("mismatched", wrong)):
        write_shard(folder / name, "000000.tar", 0, len(kept), samples(name, kept, 0, pictures))


def sentences(texts: Iterable[str]) -> list[str]:
    """Sentences of 5 to 40 words of paragraphs of prose, each once, in order."""
    paragraphs = (paragraph for text in texts for paragraph in re.split(r"\n\s*\n", text))
    prose = (" ".join(paragraph.split()) for paragraph in paragraphs if not NOT_PROSE.match(paragraph))
    every = (sentence for paragraph in prose for sentence in SENTENCE_END.split(paragraph))
    return [*dict.fromkeys(one for one in every if 5 <= len(one.split()) <= 40 and one[-1] in ".!?")]


def docstrings(folder: Path) -> Iterator[str]:
    """Docstrings of all Python files below a folder, but for `OTHERS`, in the order of their paths."""
    for path in sorted(folder.rglob("*.py")):
        if OTHERS.isdisjoint(path.relative_to(folder).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def pack_sentences(folder: Path) -> None:
    """Write `train` and `test` (every eighth) of the sentences in the documentation of Python's standard library."""
    every = sentences(docstrings(Path(sysconfig.get_path("stdlib"))))
    for split, kept in (("train", [one for i, one in enumerate(every) if i % 8]), ("test", every[::8])):
        samples = ({"__key__": f"{i:05d}", "txt": one.encode()} for i, one in enumerate(kept))
        write_shard(folder / split, "000000.tar", 0, len(kept), samples)


def pack_clips(folder: Path, train: int, test: int) -> None:
    """Write clips of moving digits; the class is one of the four `moving_scenes.MOTIONS`."""

    def samples(split: str, count: int) -> Samples:
        for i in range(count):
            scene = moving_scenes.sample_scene(split, i)
            clip = moving_scenes.encode_scene(scene, f"{i:05d}", size=48, fps=10.0)
            yield {**clip, "cls": str(moving_scenes.MOTIONS.index(scene.motion)).encode()}

    for split, count in (("train", train), ("test", test)):
        write_shard(folder / split, "000000.tar", 0, count, samples(split, count))


def pack_rhythms(folder: Path, records: int, tests: int) -> None:
    """Write electrocardiograms: `train` and `noise` of four rhythms, `labelled` and `test` of the four `NEW_RHYTHMS`.

    `noise` is `train` with the times of each recording shuffled. The patients of `test` are others than those of the rest.

    Args:
        folder: folder of the four folders.
        records: recordings of all eight rhythms that `train` and `labelled` are taken from.
        tests: the same of `test`.
    """
    new = {heart.CLASS_NAMES.index(name) for name in NEW_RHYTHMS}
    every = {
        split: [heart.sample_record(split, i) for i in range(n)] for split, n in (("train", records), ("test", tests))
    }
    for name, split, unseen in (("train", "train", False), ("labelled", "train", True), ("test", "test", True)):
        kept = [one for one in every[split] if (one.label in new) == unseen]
        write_series(folder / name, [(heart.render(one), one.label) for one in kept])
        if name == "train":
            rng = generator(0, "learning", "noise")
            write_series(folder / "noise", [(rng.permutation(heart.render(one)), one.label) for one in kept])


def pack_envelopes(source: Path, folder: Path) -> None:
    """Write the envelopes of spoken digits with their digits: `test` of the `NEW_SPEAKERS`, `train` of the other four."""
    every = read_speech(source)
    for split in ("train", "test"):
        kept = [one for one in every if (one.speaker in NEW_SPEAKERS) == (split == "test")]
        write_series(folder / split, [(envelopes(one.wav), one.digit) for one in kept])


def write_series(folder: Path, series: Sequence[tuple[np.ndarray, int]]) -> None:
    """Write series [time, channel] with their classes as one shard."""

    def samples() -> Samples:
        for i, (values, label) in enumerate(series):
            file = io.BytesIO()
            np.save(file, values)
            yield {"__key__": f"{i:05d}", "npy": file.getvalue(), "cls": str(label).encode()}

    write_shard(folder, "000000.tar", 0, len(series), samples())


def envelopes(wav: bytes) -> np.ndarray:
    """Amplitude of a recording (mono, 16 bit) in four `BANDS`, 100 times a second: float32 [time, 4], in dB, at least -80.

    By the power in Hann windows of 20 ms; 0 dB: a sine of full scale.
    """
    with wave.open(io.BytesIO(wav)) as file:
        rate, sound = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    hop, window = rate // 100, np.hanning(rate // 50)
    sound = np.pad(sound, (0, max(0, len(window) - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(sound, len(window))[::hop]
    power = np.abs(np.fft.rfft(frames * window)) ** 2 / (len(window) * (window**2).sum() / 4)
    places = np.fft.rfftfreq(len(window), 1 / rate)
    bands = [power[:, (places >= low) & (places < high)].sum(axis=1) for low, high in pairwise(BANDS)]
    return (10 * np.log10(np.maximum(np.stack(bands, 1), 1e-8))).astype(np.float32)
