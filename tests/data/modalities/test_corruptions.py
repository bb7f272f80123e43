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
from torchvision.transforms.functional import gaussian_blur as torchvision_blur

from mmssl.data.corruption import SEVERITIES
from mmssl.data.media.lossy import CODECS
from mmssl.data.modalities.array import ArrayConfig
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.corruptions.blurs import BLURS
from mmssl.data.modalities.corruptions.clips import CLIPS
from mmssl.data.modalities.corruptions.common import COMMON, EXTRA
from mmssl.data.modalities.corruptions.measurements import ARRAYS
from mmssl.data.modalities.corruptions.measurements import SERIES as WAVES
from mmssl.data.modalities.corruptions.planes import disc, filtered, plasma, smoothed, trail, zoomed
from mmssl.data.modalities.corruptions.sentences import NEIGHBOURS, SENTENCES
from mmssl.data.modalities.corruptions.sounds import SOUNDS
from mmssl.data.modalities.corruptions.unnatural import CELLS, UNNATURAL
from mmssl.data.modalities.corruptions.views import GROUPS, corrupted
from mmssl.data.modalities.corruptions.weather import WEATHER
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.series import SeriesConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality
from mmssl.data.timeline import Clip

IMAGE: Modality = ImageConfig(size=96).build("image")
AUDIO: Modality = AudioConfig(rate=8000, seconds=0.5).build("audio")
VIDEO: Modality = VideoConfig(size=16, frames=8, seconds=1.0).build("video")
ARRAY: Modality = ArrayConfig.model_validate({"axes": None, "size": 96, "channels": 6}).build("array")
SERIES: Modality = SeriesConfig(axes=("time", "channel"), rate=100.0, channels=12, seconds=20.0).build("series")
TEXT: Modality = TextConfig.model_validate({"tokenizer": {"kind": "clip", "context_length": 80}}).build("text")
SENTENCE = "A small Dog runs over the green meadow"
KINDS = [
    (modality, kind)
    for modality, some in (
        (IMAGE, {**COMMON, **EXTRA, **UNNATURAL}),
        (AUDIO, SOUNDS),
        (VIDEO, CLIPS),
        (TEXT, SENTENCES),
        (ARRAY, ARRAYS),
        (SERIES, WAVES),
    )
    for kind in some
]
UNORDERED = ("vertical_lines", "elastic_transform", "saturate", "spatter", "glass_blur")
"""Lines are fewer and wider, and leave as much black at every severity; then three are two transforms each, as in ImageNet-C. Glass
is measured at edges, as a smooth picture shows its noise alone."""
COVERING = ("frost", "fog")
"""The more they cover, the darker is the picture below: what counts is how little the result has in common with it."""


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
    if modality is ARRAY:
        return 1000 + 3 * np.concatenate([picture(), picture()[::-1]], -1).astype(np.float32)
    if modality is SERIES:
        seconds = np.arange(2000) / 100
        waves = [5 * number + (1 + number) * np.sin(2 * np.pi * 1.2 * seconds + number) for number in range(12)]
        return np.stack(waves).astype(np.float32)
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
        common = float(torch.corrcoef(torch.stack([x.flatten().float(), clean.flatten().float()]))[0, 1])
        distances.append(1 - common if kind in COVERING else float((x.float() - clean.float()).norm()))
    assert distances[0] > 0 or kind == "casing", "CLIP's tokens know no capitals"
    # A letter more or fewer moves all tokens behind it.
    if modality is not TEXT and kind not in UNORDERED:
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
    assert {*IMAGE.corruptions} == {*COMMON, *EXTRA, *UNNATURAL}
    assert {*VIDEO.corruptions} == {*COMMON, *EXTRA, *UNNATURAL, *CLIPS}
    assert AUDIO.corruptions is SOUNDS
    assert TEXT.corruptions is SENTENCES
    assert LabelConfig().build("label").corruptions == {}
    assert not {*ARRAY.corruptions} & {"brightness", "jpeg", "fog", "shot_noise"}, "its values are no levels of light"
    published = (
        "gaussian shot impulse defocus glass motion zoom snow frost fog brightness contrast elastic pixelate jpeg"
    )
    assert [kind.split("_")[0] for kind in COMMON] == published.split(), "the 15 of ImageNet-C, in its order"
    assert set(GROUPS["all"]) == {kind for _, kind in KINDS}


def test_all_frames_of_a_clip_get_the_same_shapes() -> None:
    still = Clip(np.stack([picture()[:16, :16]] * 8), np.arange(8) / 8, 1.0)
    for kind in (*UNNATURAL, *BLURS, *WEATHER, "elastic_transform", "spatter"):
        x = corrupted(VIDEO, kind, 3).view("eval")(still, {}).float()
        assert torch.equal(x, x[:1].expand_as(x)), kind


def test_filters_are_convolutions_around_the_middle_of_their_kernel() -> None:
    x = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    kernel = trail(6, 3, 30)
    assert float(kernel.sum()) == pytest.approx(1)
    assert float(kernel[:6].sum()) == float(kernel[:, :6].sum()) == 0, "from the middle (6, 6)"
    assert float(kernel[9, 11]) > 0, "three pixels down and five to the right"
    wide = torch.nn.functional.pad(x.reshape(-1, 1, 40, 50), [6] * 4, mode="reflect")
    slow = torch.nn.functional.conv2d(wide, kernel.flip(0, 1)[None, None]).reshape(x.shape)
    assert torch.allclose(filtered(x, kernel), slow, atol=1e-5)
    assert float(disc(3.0).gt(0).sum()) == 37, "of the 7 x 7 places, those less than 3.5 from the middle"
    blurred = torchvision_blur(x, [9, 9], [1.0, 1.0])
    assert torch.allclose(smoothed(x, 1.0), blurred, atol=1e-5)


def test_glass_moves_edges_further_with_severity() -> None:
    blocks = torch.rand((3, 7, 7), generator=torch.Generator().manual_seed(0)).repeat_interleave(32, 1)
    x = blocks.repeat_interleave(32, 2)
    glass = COMMON["glass_blur"]
    moved = [
        float((glass.function(x, strength, torch.Generator().manual_seed(0)) - x).norm())
        for strength in glass.strengths
    ]
    assert moved[0] < moved[2] < moved[4]
    once = glass.function(x, (1e-3, 4, 1), torch.Generator().manual_seed(0))
    assert float((once - x).abs()[:, 5:27, 5:27].max()) == 0, "colours come from at most so far"
    assert float((once - x).abs()[:, :, 28:36].max()) > 0


def test_a_zoom_shows_the_middle() -> None:
    places = torch.arange(40.0).expand(1, 40, 40)
    found = zoomed(places, 2.0)[0, 0]
    assert torch.allclose(found, 19.5 + (torch.arange(40) - 19.5) / 2)
    assert torch.equal(zoomed(places, 1.0), places)


def test_lengths_are_in_proportion_to_the_picture() -> None:
    """A line of light in a picture of 224 pixels becomes as wide a band, of the picture, as in one of 112."""
    for side in (112, 224):
        x = torch.zeros(3, side, side)
        x[..., side // 2] = 1
        for kind, width in (("defocus_blur", 2 * 10 / 224), ("gaussian_blur", 8 * 6 / 224)):
            corruption = {**COMMON, **EXTRA}[kind]
            made = corruption.function(x, corruption.strengths[4], torch.Generator())
            seen = (made[0, side // 2] > 1e-6).sum() / side
            assert float(seen) == pytest.approx(width, abs=2.1 / side), (kind, side)


def test_weather_has_the_published_amounts() -> None:
    x = torch.full((3, 64, 64), 0.5)
    x[:, 0, 0] = 1
    noise = plasma((64, 64), 2.0, torch.Generator().manual_seed(0))
    assert (float(noise.min()), float(noise.max())) == (0, 1)
    fog = COMMON["fog"].function(x, (1.5, 2.0), torch.Generator().manual_seed(0))
    assert torch.allclose(fog, (x + 1.5 * noise) / 2.5)
    frost = COMMON["frost"].function(x, (0.6, 0.75), torch.Generator().manual_seed(0))
    ice = (frost - 0.6 * x) / 0.75
    assert 0.2 < float(ice.mean()) < 0.7
    assert float(ice.std()) > 0.05, "a texture"
    assert bool((ice[2] >= ice[0]).all()), "bluish"


def test_saturation_and_speckles() -> None:
    x = torch.tensor([0.8, 0.4, 0.2]).reshape(3, 1, 1).expand(3, 64, 64)
    for severity, wanted in ((1, 0.75 * 0.3), (3, 1.0), (4, 1.0)):
        strength = EXTRA["saturate"].strengths[severity - 1]
        red, green, blue = (float(one[0, 0]) for one in EXTRA["saturate"].function(x, strength, torch.Generator()))
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        assert (saturation, value) == pytest.approx((wanted, 0.8))
        assert hue == pytest.approx(colorsys.rgb_to_hsv(0.8, 0.4, 0.2)[0])
    speckled = EXTRA["speckle_noise"].function(x, 0.15, torch.Generator().manual_seed(0)) - x
    assert float(speckled[0].std() / speckled[2].std()) == pytest.approx(4, rel=0.15), "as strong as the light"


def test_corruptions_of_measurements_are_in_units_of_their_channels() -> None:
    x = torch.from_numpy(value(SERIES))
    spread = x.std(1, correction=0)

    def changed(kind: str, severity: int) -> Tensor:
        corruption = WAVES[kind]
        rate = {"rate": 100.0} if corruption.timed else {}
        made: Tensor = corruption.function(
            x, corruption.strengths[severity - 1], torch.Generator().manual_seed(0), **rate
        )
        return made - x

    noise = changed("white_noise", 3).square().mean(1).sqrt() / spread
    assert noise.tolist() == pytest.approx([10**-0.5] * 12, rel=0.1), "10 dB"
    wander = changed("baseline_wander", 4)
    assert (wander.square().mean(1).sqrt() / spread).tolist() == pytest.approx([2.0] * 12, rel=1e-4)
    assert float(torch.fft.rfft(wander[0]).abs()[8:].max()) < 1, "no faster than 0.3 Hz"
    gained = x + changed("gain", 1)
    assert gained.mean(1).tolist() == pytest.approx(x.mean(1).tolist(), abs=1e-4)
    assert (gained.std(1, correction=0) / spread).tolist() == pytest.approx([10**-0.3] * 12, rel=1e-4)
    lost = [(x + changed("channel_dropout", severity)).std(1) < 1e-4 for severity in (1, 4, 5)]
    assert [int(one.sum()) for one in lost] == [1, 6, 9]
    assert bool((lost[1] | ~lost[0]).all()), "those of a smaller severity, and more"
    assert [int((changed("time_mask", severity)[0] != 0).sum()) for severity in (1, 5)] == pytest.approx(
        [100, 1000], abs=2
    )
    assert torch.equal(WAVES["channel_dropout"].function(x[:1], 0.75, torch.Generator()), x[:1]), (
        "one channel is not lost"
    )
    flat = torch.full((2, 50), 3.0)
    for corruption in WAVES.values():
        rate = {"rate": 100.0} if corruption.timed else {}
        same = corruption.function(flat, corruption.strengths[4], torch.Generator().manual_seed(0), **rate)
        assert torch.allclose(same, flat), "what does not vary has no scale"


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
