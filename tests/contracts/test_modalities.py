"""What every modality promises, over all kinds that a recipe can name: a new kind needs a case here."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.core.seeding import generator
from mmssl.data.inspection import Inspection
from mmssl.data.kernel import Operand
from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.array import ArrayConfig
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modalities.series import SeriesConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.usual import modality_configs
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import DecodeError, Modality
from mmssl.data.stream.collate import BatchRow, collate
from mmssl.data.synchronized.chain import SynchronizedConfig
from mmssl.data.timeline import Clip
from mmssl.datasets.digit_render import to_wav
from mmssl.recipe.unions import ModalityUnion, members

RATE = 16_000


@dataclass(frozen=True)
class Case:
    """One modality: how to build it, an encoded value, what it should decode to, and how near that is.

    Attributes:
        part: (value, start, length) -> what a window of the value should be; None: no time axis.
    """

    config: Callable[[], Any]
    data: bytes
    value: Any
    tolerance: float = 0.0
    extension: str = "bin"
    part: Callable[[Any, float, float], Any] | None = None
    bad: tuple[bytes, ...] = field(default=(b"\xff\xfe\x00nonsense",))


def picture() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((40, 32), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def bands() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 2**16, (24, 32, 5), dtype=np.uint16)


HEART = 250


def leads() -> np.ndarray:
    t = np.arange(2 * HEART) / HEART
    return np.stack([np.sin(7 * t), 20 + t, np.cos(3 * t) * t]).astype(np.float32)


def part_of_series(value: np.ndarray, start: float, length: float) -> np.ndarray:
    first = round(start * HEART)
    return value[:, first : first + round(length * HEART)]


def wave() -> np.ndarray:
    t = np.arange(RATE * 2) / RATE
    return np.asarray([np.sin(2000 * t) * t / 3, np.sin(900 * t) * 0.4], dtype=np.float32)


def frames() -> np.ndarray:
    return np.stack([np.roll(picture(), 2 * i, axis=1) for i in range(20)])


def part_of_wave(value: np.ndarray, start: float, length: float) -> np.ndarray:
    first = round(start * RATE)
    return value[:, first : first + round(length * RATE)]


def part_of_clip(value: Clip, start: float, length: float) -> Clip:
    ends = np.append(value.times[1:], value.seconds)
    shown = (value.times < start + length - 1e-6) & (ends > start + 1e-6)
    end = min(start + length, value.seconds)
    return Clip(value.frames[shown], np.maximum(value.times[shown] - start, 0), end - start)


def approximately(value: Any) -> Any:
    return pytest.approx(value, abs=0.1)


CASES = {
    "image": Case(lambda: ImageConfig(size=16), png(picture()), picture()),
    "text": Case(lambda: TextConfig(captions="lines"), b"a dog\ntwo cats\n", ("a dog", "two cats"), bad=(b"\xff",)),
    "label": Case(lambda: LabelConfig(), b" 7\n", 7, bad=(b"seven", b"-1")),
    "multi_label": Case(
        lambda: MultiLabelConfig(),
        npy(np.array([0, 1, 1, 0])),
        np.array([0, 1, 1, 0], np.uint8),
        bad=(b"nonsense", npy(np.array([0, 2])), npy(np.eye(2))),
    ),
    "audio": Case(
        lambda: AudioConfig(rate=RATE, seconds=0.5), to_wav(wave().T, RATE), wave(), 2**-14, part=part_of_wave
    ),
    "video": Case(
        lambda: VideoConfig(size=16, frames=4, seconds=0.5),
        encode_clip("mkv", frames(), None, fps=10),
        Clip(frames(), np.arange(20) / 10, 2.0),
        48.0,  # chroma has half the resolution
        part=part_of_clip,
    ),
    "array": Case(
        lambda: ArrayConfig(axes=["channel", "height", "width"], channels=5, size=16),
        npy(bands().transpose(2, 0, 1)),
        bands(),
        bad=(b"\x93NUMPY\x01\x00nonsense", png(picture())[:60]),
    ),
    "series": Case(
        lambda: SeriesConfig(axes=["time", "channel"], rate=HEART, channels=3, seconds=0.5),
        npy(leads().T),
        leads(),
        part=part_of_series,
        bad=(b"\x93NUMPY\x01\x00nonsense", npy(leads().T)[:200]),
    ),
}
INSPECTIONS = {
    "image": Inspection(
        {"width": [40], "height": [32]}, items=(("an image", png(picture())),), channels=approximately(picture())
    ),
    "text": Inspection(
        {"words": [2, 2], "tokens": [4, 4]},
        flags=("several captions",),
        items=(("'a dog'", b"a dog"), ("'two cats'", b"two cats")),
    ),
    "label": Inspection(counted={"class": 7}),
    "multi_label": Inspection({"classes of a sample": [2]}, {"classes": 4}),
    "audio": Inspection({"seconds": [2.0], "level (dB)": approximately([-11.2])}, {"rate (Hz)": RATE, "channels": 2}),
    "video": Inspection(
        {"seconds": approximately([2.0]), "frames a second": approximately([10.0]), "width": [40], "height": [32]}
    ),
    "array": Inspection(
        {"NaN share": [0.0], "smallest": [int(bands().min())], "largest": [int(bands().max())]},
        {"shape": "5 x 24 x 32 uint16"},
        items=(("an array", npy(bands().transpose(2, 0, 1))),),
        channels=approximately(bands().reshape(-1, 5)),
    ),
    "series": Inspection(
        {"seconds": [2.0], "NaN share": [0.0]},
        {"type": "float32"},
        items=(("a series", npy(leads().T)),),
        channels=approximately(leads().T),
    ),
}
EVERY = pytest.mark.parametrize("kind", CASES)


def build(kind: str) -> Modality:
    modality: Modality = CASES[kind].config().build(kind)
    return modality


def close(got: Any, wanted: Any, tolerance: float) -> None:
    if isinstance(wanted, Clip):
        close(got.frames, wanted.frames, tolerance)
        np.testing.assert_allclose(got.times, wanted.times, atol=1e-6)
        assert got.seconds == pytest.approx(wanted.seconds, abs=1e-6)
    elif isinstance(wanted, np.ndarray):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(got.astype(float), wanted.astype(float), atol=tolerance)
    else:
        assert got == wanted


def test_every_kind_has_a_case() -> None:
    assert {config.model_fields["kind"].default for config in members(ModalityUnion)} == set(CASES)
    assert modality_configs().keys() == set(CASES)  # what verbs know without a recipe


@EVERY
def test_every_operation_has_a_kernel_or_a_reason(kind: str) -> None:
    case, modality = CASES[kind], build(kind)
    assert modality.kernels.keys() == {config.model_fields["kind"].default for config in members(SynchronizedConfig)}
    value = modality.decode(case.data, case.extension)
    for kernel in modality.kernels.values():
        if kernel.reason:
            assert kernel.run(value, {}, Operand(kind, modality)) is value


@EVERY
def test_facts_go_with_values(kind: str) -> None:
    """A time axis has a length, frames have times, sentences become views, and relations can be measured."""
    case, modality = CASES[kind], build(kind)
    value = modality.decode(case.data, case.extension)
    assert modality.length(value) == (None if case.part is None else pytest.approx(2.0))
    times = modality.frame_times(value)
    assert (times is not None) == modality.moving
    if times is not None:
        assert times == pytest.approx(np.arange(20) / 10, abs=1e-6)
        assert modality.frame_start(case.data, 0.55) == pytest.approx(0.5, abs=1e-6)
    if modality.language:
        assert torch.equal(modality.tokenize(list(value)), modality.view("eval")(value, {}))
    else:
        with pytest.raises(TypeError, match="has no tokenizer"):
            modality.tokenize(["a dog"])
    assert (modality.kernels["negative"].measure(value) or frozenset()) <= modality.relations
    assert bool(modality.relations) == (modality.audible or modality.language)


@EVERY
def test_reports_count_what_a_member_holds(kind: str) -> None:
    case, modality = CASES[kind], build(kind)
    assert modality.inspect(case.data, case.extension) == INSPECTIONS[kind]
    with pytest.raises(DecodeError):
        modality.inspect(case.bad[0], case.extension)


@EVERY
def test_usual_settings_and_files(kind: str) -> None:
    case, config = CASES[kind], modality_configs()[kind]
    usual = config.usual()
    assert (usual is None) == (kind in ("series", "multi_label"))  # without a recipe their files are arrays
    modality = build(kind) if usual is None else usual.build(kind)
    assert next(iter(modality.views)) != "eval"  # what `bench data` makes
    modality.decode(case.data, modality.extensions[0])
    formats = config.files
    assert (formats is None) == (kind in ("text", "label", "multi_label"))
    if formats is not None:
        assert set(modality.extensions) <= set(formats.extensions)
        assert any(re.match(begins, case.data[:64], re.DOTALL) for begins in formats.begins.values())


@EVERY
def test_decode_undoes_encode(kind: str) -> None:
    case = CASES[kind]
    close(build(kind).decode(case.data, case.extension), case.value, case.tolerance)


@EVERY
def test_bad_bytes_are_decode_errors_with_a_reason(kind: str) -> None:
    case = CASES[kind]
    for data in (*case.bad, case.data[: len(case.data) // 2] if kind in ("image", "audio", "video") else b""):
        with pytest.raises(DecodeError) as caught:
            build(kind).decode(data, case.extension)
        assert caught.value.reason in ("undecodable", "empty", "missing")
        assert caught.value.detail


@EVERY
def test_a_window_is_that_part_of_the_whole(kind: str) -> None:
    case, modality = CASES[kind], build(kind)
    whole = modality.decode(case.data, case.extension)
    extent = modality.extent(case.data, case.extension)
    assert (extent is None) == (case.part is None)
    for start, length in ((0.0, 0.5), (0.613, 0.5), (1.7, 0.2), (1.9, 3.0)):
        got = modality.decode(case.data, case.extension, (start, length))
        close(got, whole if case.part is None else case.part(whole, start, length), 1e-6)
    if extent is not None:
        assert extent == pytest.approx((2.0, 0.0), abs=1e-6)
        with pytest.raises(DecodeError, match="empty"):
            modality.decode(case.data, case.extension, (extent.seconds + 0.1, 1.0))


@EVERY
def test_views_are_functions_of_the_seed_and_of_the_record(kind: str) -> None:
    case, modality = CASES[kind], build(kind)
    value = modality.decode(case.data, case.extension)
    copy = pickle.loads(pickle.dumps(modality))
    for name, view in modality.views.items():
        drawn = [view.draw(value, generator(seed, kind, name)) for seed in (0, 0, 1, 2, 3)]
        assert drawn[0] == drawn[1] == eval(repr(drawn[0]))  # plain numbers, strings and lists
        assert name != "eval" or drawn == [{}] * 5
        made = view(value, drawn[0])
        assert torch.equal(made, copy.views[name](value, drawn[1]))
        if name == "crop":
            assert any(drawn[0] != other for other in drawn[2:])


@EVERY
def test_views_stack_and_absent_ones_are_blank(kind: str) -> None:
    case, modality = CASES[kind], build(kind)
    value = modality.decode(case.data, case.extension)
    for name, view in modality.views.items():
        made = view(value, view.draw(value, np.random.default_rng(0)))
        blank = view.blank()
        assert blank.dtype == made.dtype
        assert view.ragged or blank.shape == made.shape
        rows = [BatchRow(0, "a", {kind: {f"{name}0": made}}), BatchRow(1, "b", {})]
        batch = collate(rows, {kind: modality}, {kind: {name: 1}})
        assert batch.present[kind].tolist() == [True, False]
        assert torch.equal(batch[kind][f"{name}0"][0], made)
        assert view.ragged or torch.equal(batch[kind][f"{name}0"][1], blank)
