"""Corruptions of evaluation views: of their type and range, repeatable, worse with severity, and what their names say."""

from __future__ import annotations

import colorsys
import math
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmssl.data.media.lossy import CODECS
from mmssl.data.modalities.array import ArrayConfig
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.corruptions.clips import CLIPS
from mmssl.data.modalities.corruptions.common import COMMON
from mmssl.data.modalities.corruptions.corruption import SEVERITIES
from mmssl.data.modalities.corruptions.sentences import NEIGHBOURS, SENTENCES
from mmssl.data.modalities.corruptions.sounds import SOUNDS
from mmssl.data.modalities.corruptions.unnatural import CELLS, UNNATURAL
from mmssl.data.modalities.corruptions.views import GROUPS, corrupted, corruptions_of
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality
from mmssl.data.timeline import Clip

IMAGE: Modality = ImageConfig(size=96).build("image")
AUDIO: Modality = AudioConfig(rate=8000, seconds=0.5).build("audio")
VIDEO: Modality = VideoConfig(size=16, frames=8, seconds=1.0).build("video")
TEXT: Modality = TextConfig.model_validate({"tokenizer": {"kind": "clip", "context_length": 80}}).build("text")
SENTENCE = "A small Dog runs over the green meadow"
KINDS = [
    (modality, kind)
    for modality, some in ((IMAGE, {**COMMON, **UNNATURAL}), (AUDIO, SOUNDS), (VIDEO, CLIPS), (TEXT, SENTENCES))
    for kind in some
]


def picture() -> np.ndarray:
    """A smooth picture of light waves of three colours, with something in every place."""
    rows, columns = np.mgrid[0:96, 0:96] / 96
    waves = [np.sin(7 * rows + phase) * np.cos(5 * columns - phase) for phase in (0, 1, 2)]
    return (np.stack(waves, -1) * 70 + 128).astype(np.uint8)


def value(modality: Modality) -> Any:
    rng = np.random.default_rng(0)
    if modality is IMAGE:
        return picture()
    if modality is VIDEO:
        return Clip(np.stack([np.full((16, 16, 3), 20 * i, np.uint8) for i in range(8)]), np.arange(8) / 8, 1.0)
    if modality is TEXT:
        return Captions([SENTENCE, "Two cats"])
    wave: np.ndarray = rng.standard_normal((1, 4000)).astype(np.float32) * 0.2
    return wave


def made(modality: Modality, kind: str, severity: int) -> Tensor:
    return corrupted(modality, kind, severity).view("eval")(value(modality), {})


@pytest.mark.parametrize(("modality", "kind"), KINDS)
def test_a_view_keeps_its_form_and_loses_more_with_severity(modality: Modality, kind: str) -> None:
    clean = modality.view("eval")(value(modality), {})
    distances = []
    for severity in SEVERITIES:
        view = pickle.loads(pickle.dumps(corrupted(modality, kind, severity))).view("eval")
        x = view(value(modality), {})
        assert (x.shape, x.dtype, view.ragged) == (clean.shape, clean.dtype, modality.view("eval").ragged)
        assert torch.equal(x, view(value(modality), {})), "the same content has the same noise"
        assert bool(torch.isfinite(x.float()).all())
        distances.append(float((x.float() - clean.float()).norm()))
    assert distances[0] > 0 or kind == "casing", "CLIP's tokens know no capitals"
    # A letter more or fewer moves all tokens behind it; lines are fewer and wider, and leave as much black at every severity.
    if modality is not TEXT and kind != "vertical_lines":
        assert distances[0] < distances[2] < distances[4]
    assert view.blank().shape == modality.view("eval").blank().shape


def test_other_content_has_other_noise() -> None:
    view = corrupted(IMAGE, "gaussian_noise", 3).view("eval")
    black, grey = (view(np.full((100, 100, 3), level, np.uint8), {}).float() for level in (100, 120))
    assert (
        float((black - black.mean()).flatten() @ (grey - grey.mean()).flatten())
        < 0.1 * float(black.var()) * black.numel()
    )


def test_who_has_which() -> None:
    assert {*corruptions_of(IMAGE)} == {*COMMON, *UNNATURAL}
    assert {*corruptions_of(VIDEO)} == {*COMMON, *UNNATURAL, *CLIPS}
    assert corruptions_of(AUDIO) is SOUNDS
    assert corruptions_of(TEXT) is SENTENCES
    assert corruptions_of(LabelConfig().build("label")) == {}
    array = ArrayConfig.model_validate({"axes": None, "size": 8, "channels": 3}).build("array")
    assert corruptions_of(array) == {}, "its values are no levels of light"
    assert set(GROUPS["all"]) == {kind for _, kind in KINDS}


def test_all_frames_of_a_clip_get_the_same_shapes() -> None:
    still = Clip(np.stack([picture()[:16, :16]] * 8), np.arange(8) / 8, 1.0)
    for kind in UNNATURAL:
        x = corrupted(VIDEO, kind, 3).view("eval")(still, {}).float()
        assert torch.equal(x, x[:1].expand_as(x)), kind


def test_a_mosaic_keeps_the_mean_colour_of_what_a_tile_covers() -> None:
    tile = round(96 * UNNATURAL["mosaic"].strengths[4])
    clean, x = (IMAGE.view("eval")(picture(), {}).float(), made(IMAGE, "mosaic", 5).float())
    for row in range(0, 96 - tile, tile):
        part = (slice(None), slice(row, row + tile), slice(0, tile))
        assert torch.allclose(x[part].mean((1, 2)), clean[part].mean((1, 2)), atol=12), "clamping moves it a little"


def test_lines_are_as_wide_as_a_place_is_bright() -> None:
    white, black, grey = (np.full((96, 96, 3), level, np.uint8) for level in (255, 0, 128))
    view = corrupted(IMAGE, "vertical_lines", 5).view("eval")
    assert [round(96 * share) for share in UNNATURAL["vertical_lines"].strengths] == [2, 3, 4, 6, 8]
    assert bool((view(white, {}) == 255).all())
    assert not view(black, {}).any()
    row = view(grey, {})[0, 0]
    assert (row == 128).float().mean() == pytest.approx(0.5)
    assert [int(i) for i in (row[:8] == 128).nonzero()] == [2, 3, 4, 5], "in the middle of its strip"


def test_a_checkerboard_is_brighter_and_darker_in_turn() -> None:
    grey = np.full((96, 96, 3), 128, np.uint8)
    x = corrupted(IMAGE, "luminance_checkerboard", 2).view("eval")(grey, {})
    side = 96 // CELLS
    assert sorted(x.unique().tolist()) == [77, 179]
    assert x[0, 0, 0] == x[0, side, side] == 179
    assert x[0, 0, side] == x[0, side, 0] == 77


def test_frames_are_held_and_lost() -> None:
    held = made(VIDEO, "frame_rate", 2)[:, 0, 0, 0].tolist()
    clean = VIDEO.view("eval")(value(VIDEO), {})[:, 0, 0, 0].tolist()
    assert held == [clean[i - i % 3] for i in range(8)]
    lost = made(VIDEO, "frame_drop", 4)[:, 0, 0, 0].tolist()
    assert sum(one != other for one, other in zip(lost, clean, strict=True)) == round(0.6 * 7)
    assert lost[0] == clean[0]
    assert lost == sorted(lost), "what is lost is the frame before, never a later one"


def heard(kind: str, severity: int, wave: Tensor) -> Tensor:
    corruption = SOUNDS[kind]
    rate = {"rate": 8000.0} if corruption.timed else {}
    return corruption.function(wave, corruption.strengths[severity - 1], torch.Generator().manual_seed(0), **rate)


def test_sounds_are_what_their_names_say() -> None:
    time = torch.arange(8000) / 8000
    tone = 0.5 * torch.sin(2 * math.pi * 1000 * time)[None]
    for kind in ("white_noise", "pink_noise"):
        noise = heard(kind, 3, tone) - tone
        ratio = 10 * math.log10(float(tone.square().mean() / noise.square().mean()))
        assert ratio == pytest.approx(10, abs=0.3), "signal to noise in dB"
    spectrum = torch.fft.rfft(heard("pink_noise", 5, torch.ones(1, 2**15)) - 1)[0].abs().square()
    octaves = [float(spectrum[2**k : 2 ** (k + 1)].sum()) for k in range(6, 13)]
    assert max(octaves) / min(octaves) < 2, "every octave has the same power"
    click = torch.zeros(1, 8000)
    click[0, 1000] = 1.0
    echo = heard("reverb", 1, click)[0]
    assert not echo[:1000].abs().max() > 1e-6, "nothing is heard before"
    early, late = (float(echo[s].square().mean()) for s in (slice(1001, 1200), slice(1401, 1600)))
    assert 10 * math.log10(early / late) == pytest.approx(60 * 400 / 800, abs=4), "60 dB in 0.1 s"
    assert heard("high_pass", 5, tone).abs().max() < 0.01, "1000 of 4000 Hz lie below 0.35 of the band"
    assert torch.allclose(heard("high_pass", 4, tone), tone, atol=0.01)
    squeezed = heard("compression", 3, torch.tensor([[1.0, 0.25, -0.25]]))
    assert squeezed[0].tolist() == pytest.approx([1.0, 0.5, -0.5])
    assert len(heard("quantisation", 5, tone).unique()) <= 2**3 + 1
    assert torch.allclose(heard("quantisation", 1, tone), tone, atol=0.05)


@pytest.mark.parametrize("rate", [7_000, 8_000, 22_050, 48_000])
@pytest.mark.parametrize("codec", CODECS)
def test_codecs_keep_time_and_lose_detail(codec: str, rate: int) -> None:
    """A sweep stays where it was, at rates that a codec has and at others; silence stays; so does the shortest sound."""
    seconds = torch.arange(rate // 2) / rate
    sweep = 0.3 * torch.sin(2 * math.pi * (300 * seconds + 900 * seconds**2))
    both = torch.stack([sweep, torch.zeros_like(sweep)])
    mild, hard = (
        SOUNDS[codec].function(both, SOUNDS[codec].strengths[i], torch.Generator(), rate=float(rate)) for i in (0, 4)
    )
    spectrum = torch.fft.rfft(mild[0], 2 * len(sweep)) * torch.fft.rfft(sweep, 2 * len(sweep)).conj()
    assert int(torch.fft.irfft(spectrum).argmax()) in (0, 1, 2, 2 * len(sweep) - 1, 2 * len(sweep) - 2)
    assert mild.shape == hard.shape == both.shape
    assert float((mild[0] - sweep).norm()) < 0.5 * float(sweep.norm())
    assert float((hard[0] - sweep).norm()) > 0.03 * float(sweep.norm())
    assert float(mild[1].abs().max()) < 1e-3, "each channel by itself"
    short = SOUNDS[codec].function(both[:, :1], SOUNDS[codec].strengths[2], torch.Generator(), rate=float(rate))
    assert short.shape == (2, 1)


@pytest.mark.parametrize("codec", CODECS)
def test_few_bits_leave_no_high_tones(codec: str) -> None:
    noise = 0.2 * torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    heard = SOUNDS[codec].function(noise, SOUNDS[codec].strengths[4], torch.Generator(), rate=48_000.0)
    power = torch.fft.rfft(heard)[0].abs().square()
    assert float(power[12_500:].sum()) < 0.01 * float(power.sum()), "nothing above 12 kHz"
    assert float(power[:4_000].sum()) > 0.2 * float(torch.fft.rfft(noise)[0, :4_000].abs().square().sum())


def edits(one: str, other: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, second in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (letter != second))
    return row[-1]


def rewritten(kind: str, text: str = SENTENCE) -> list[str]:
    views = [corrupted(TEXT, kind, severity).view("eval") for severity in SEVERITIES]
    return [view.rewritten(text) for view in views]  # type: ignore[attr-defined]


def test_sentences_lose_as_many_letters_as_said() -> None:
    letters = sum(map(str.isalpha, SENTENCE))
    for kind in ("typos", "deleted_letters", "doubled_letters", "casing"):
        counts = [math.ceil(share * letters) for share in SENTENCES[kind].strengths]
        assert [edits(SENTENCE, text) for text in rewritten(kind)] == counts, kind
    assert [len(SENTENCE) - len(text) for text in rewritten("deleted_letters")] == [1, 2, 4, 7, 10]
    assert [text.count(" ") for text in rewritten("swapped_letters")] == [SENTENCE.count(" ")] * 5
    for text in rewritten("swapped_letters"):
        assert [sorted(word) for word in text.split()] == [sorted(word) for word in SENTENCE.split()]
    assert rewritten("casing")[4] == SENTENCE.swapcase()
    assert rewritten("typos", "12 + 3") == ["12 + 3"] * 5, "nothing to mistype"
    assert rewritten("typos", "собака") == ["собака"] * 5, "letters of another keyboard"


def test_typos_are_keys_beside_the_right_one_and_stay_at_higher_severities() -> None:
    assert set(NEIGHBOURS["g"]) == set("tyfhvb")
    assert set(NEIGHBOURS["q"]) == set("wa")
    assert all(one in NEIGHBOURS[other] for one, near in NEIGHBOURS.items() for other in near)
    before: Mapping[int, str] = {}
    for text in rewritten("typos"):
        wrong = {i: letter for i, letter in enumerate(text) if letter != SENTENCE[i]}
        assert all(letter.lower() in NEIGHBOURS[SENTENCE[i].lower()] for i, letter in wrong.items())
        assert all(letter.isupper() == SENTENCE[i].isupper() for i, letter in wrong.items())
        assert before.items() <= wrong.items()
        before = wrong


def test_brightness_is_added_to_the_value_of_hsv() -> None:
    """By the standard library's conversion; black, which has no hue, becomes grey."""
    colours = np.array([[0, 0, 0], [255, 255, 255], [60, 30, 15], [0, 0, 200], [250, 10, 10]], np.uint8)
    made = corrupted(IMAGE, "brightness", 2).view("eval")
    strength = COMMON["brightness"].strengths[1]
    for colour in colours:
        hue, saturation, bright = colorsys.rgb_to_hsv(*(colour / 255))
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(1, bright + strength))
        seen = made(np.tile(colour, (96, 96, 1)), {})[:, 0, 0]
        np.testing.assert_allclose(seen / 255, wanted, atol=1.01 / 255)
