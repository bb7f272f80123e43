"""Synchronized operations one by one, on values in memory: what they mean for each modality, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from mmssl.core.sample import Origin
from mmssl.data.kernel import Kernel, identity
from mmssl.data.media.encode import encode_clip
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample
from mmssl.data.shards.index import RawSample
from mmssl.data.synchronized.chain import Synchronized, mistakes
from mmssl.data.synchronized.mix import Dropout, Gain, Mixup
from mmssl.data.synchronized.negatives import Negative
from mmssl.data.synchronized.operation import Operation
from mmssl.data.synchronized.order import Reverse, Roll, TimeMask
from mmssl.data.synchronized.space import Crop, Flip
from mmssl.data.synchronized.time import EARLY, Speed, TimeCrop
from mmssl.data.timeline import Clip, Window

RATE = 1000
MODALITIES: dict[str, Modality] = {
    "video": VideoConfig(size=16).build("video"),
    "audio": AudioConfig(rate=RATE, seconds=1.0).build("audio"),
    "image": ImageConfig(size=16).build("image"),
    "text": TextConfig().build("text"),
    "label": LabelConfig().build("label"),
}


def some(*names: str) -> dict[str, Modality]:
    return {name: MODALITIES[name] for name in names}


def values(seed: int = 0, caption: str = "a bell") -> dict[str, Any]:
    """Two seconds of random frames at random times, noise, a picture, a caption and a class."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([[0.0], np.sort(rng.choice(np.arange(1, 80), 19, replace=False)) / 40])
    return {
        "video": Clip(rng.integers(1, 256, (20, 12, 16, 3), dtype=np.uint8), times, 2.0),
        "audio": rng.uniform(-0.5, 0.5, (2, 2 * RATE)).astype(np.float32),
        "image": rng.integers(0, 256, (12, 16, 3), dtype=np.uint8),
        "text": Captions([caption]),
        "label": 3,
    }


def run(operation: Operation, seed: int = 0, given: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], Any]:
    given = values(seed) if given is None else given
    synchronized = Synchronized([operation], {name: MODALITIES[name] for name in given})
    augmented, record = synchronized(given, (seed,))
    again = synchronized.apply(record, given)
    for name, value in augmented.items():
        assert same(value, again[name])
    return augmented, record[0]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Clip):
        return np.array_equal(a.frames, b.frames) and np.array_equal(a.times, b.times) and a.seconds == b.seconds
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else bool(a == b)


@pytest.mark.parametrize("operation", [Flip(probability=1.0), Reverse(probability=1.0)])
def test_twice_is_nothing(operation: Operation) -> None:
    given = values(caption="a bell on the left before a bark")
    once, _ = run(operation, given=given)
    assert not any(same(once[name], given[name]) for name in ("video", "audio", "text"))
    twice, _ = run(operation, given=once)
    assert all(same(twice[name], given[name]) for name in given if name != "video")
    assert np.array_equal(twice["video"].frames, given["video"].frames)
    tolerance = 0.0 if isinstance(operation, Flip) else 1e-12  # 2 - (2 - t) is t but for the rounding of floats
    assert np.abs(twice["video"].times - given["video"].times).max() <= tolerance


def test_a_flip_mirrors_swaps_and_rewrites() -> None:
    given = values(caption="a bell on the left")
    made, entry = run(Flip(probability=1.0, without_sides=("image",)), given=given)
    assert entry["applied"]
    assert np.array_equal(made["video"].frames, given["video"].frames[:, :, ::-1])
    assert np.array_equal(made["audio"], given["audio"][::-1])
    assert made["text"] == ("a bell on the right",)
    assert same(made["image"], given["image"])  # was named as having no sides
    assert made["label"] == 3


def test_a_flip_mirrors_still_pictures_and_keeps_them_upright() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    made, _ = run(Flip(probability=1.0), given={"image": picture})
    assert np.array_equal(made["image"], picture[:, [2, 1, 0]])


@pytest.mark.parametrize(
    ("operation", "changed"),
    [
        (Flip(probability=1.0), ("a bell on the right before a bark", "a bark on the left after a bell")),
        (Reverse(probability=1.0), ("a bell on the left after a bark", "a bark on the right before a bell")),
        (
            Negative(probability=1.0, relations=("caption",)),
            ("a bell on the right before a bark", "a bark on the left after a bell"),
        ),
        (
            Negative(probability=1.0, relations=("order",)),
            ("a bell on the left after a bark", "a bark on the right before a bell"),
        ),
    ],
)
def test_rewritten_captions_are_drawn_as_often_as_before(operation: Operation, changed: tuple[str, ...]) -> None:
    texts = ["a bell on the left before a bark", "a bark on the right after a bell"]
    made, _ = run(operation, given=values() | {"text": Captions(texts, [3.0, 0.5])})
    assert tuple(made["text"]) == changed
    assert made["text"].weights == (3.0, 0.5)


@pytest.mark.parametrize("operation", [Flip(probability=1.0), Reverse(probability=1.0), Roll(probability=1.0), Crop()])
def test_one_doubtful_caption_keeps_the_whole_sample(operation: Operation) -> None:
    given = values()
    given["text"] = Captions(["a bell", "the box is right, then a man speaks at the top"])
    if isinstance(operation, Crop):
        operation = Crop(axes={"video": "xy", "image": "xy"})
    made, entry = run(operation, given=given)
    assert not entry["applied"]
    assert entry["skipped"] in ("ambiguous_caption", "speech", "order_words", "position_words")
    assert all(same(made[name], given[name]) for name in given)


def test_reversal_turns_moments_about() -> None:
    given = values()
    made, _ = run(Reverse(probability=1.0), given=given)
    clip, old = made["video"], given["video"]
    for moment in np.arange(0.00137, 2.0, 0.0131):
        assert np.array_equal(on_screen(clip, moment), on_screen(old, 2.0 - moment))
    assert np.array_equal(made["audio"], given["audio"][:, ::-1])


def on_screen(clip: Clip, moment: float) -> np.ndarray:
    return clip.frames[max(0, int(np.searchsorted(clip.times, moment, side="right")) - 1)]


def test_a_shorter_sound_is_reversed_about_the_middle_of_the_sample() -> None:
    given = values()
    given["audio"] = given["audio"][:, :1500]
    made, _ = run(Reverse(probability=1.0), given=given)
    assert made["audio"].shape[1] == 2 * RATE
    assert np.array_equal(made["audio"][:, 500:], given["audio"][:, ::-1])


def test_a_roll_moves_frames_and_sound_alike() -> None:
    for seed in range(10):
        given = values(seed)
        made, entry = run(Roll(probability=1.0), seed, given)
        start = entry["start"]
        assert start in given["video"].times
        assert np.array_equal(made["audio"], np.roll(given["audio"], -round(start * RATE), axis=1))
        assert (np.diff(made["video"].times) > 0).all()
        for moment in np.arange(0.00137, 2.0, 0.0131):
            assert np.array_equal(on_screen(made["video"], moment), on_screen(given["video"], (moment + start) % 2.0))


@pytest.mark.parametrize("factor", [0.8, 1.25, 0.33, 2.0])
def test_speed_divides_all_times(factor: float) -> None:
    given = values()
    click = np.zeros((2, 2 * RATE), np.float32)
    click[:, 1000] = 1
    given["audio"] = click
    made, entry = run(Speed(probability=1.0, factors=(factor,)), given=given)
    assert made["video"].times == pytest.approx(given["video"].times / factor)
    assert made["video"].seconds == pytest.approx(2 / factor)
    assert abs(made["audio"].shape[1] - 2 * RATE / factor) <= 1
    assert abs(int(np.abs(made["audio"][0]).argmax()) - 1000 / factor) <= 1
    assert entry["factor"] in ("4/5", "5/4", "33/100", "2")


def test_factors_are_exact() -> None:
    with pytest.raises(ValueError, match="at most two decimals"):
        Speed(factors=(1.234,))


def test_a_window_begins_with_a_frame_and_keeps_its_length_at_any_speed() -> None:
    for seed in range(20):
        given = values(seed)
        synchronized = Synchronized([TimeCrop(seconds=0.8), Speed(factors=(0.8, 1.25))], MODALITIES)
        made, record = synchronized(given, (seed,))
        assert record[0]["start"] in given["video"].times
        assert made["video"].times[0] == 0.0
        assert made["video"].seconds == pytest.approx(0.8)
        assert abs(made["audio"].shape[1] - 0.8 * RATE) <= 1
        if not record[1]["applied"]:
            first = round(record[0]["start"] * RATE)
            assert np.array_equal(made["audio"], given["audio"][:, first : first + 800])


def test_a_window_holds_the_frames_that_are_seen_in_it_and_no_other() -> None:
    clip = Clip(np.arange(16, dtype=np.uint8).repeat(12).reshape(16, 2, 2, 3), np.arange(16) / 8, 2.0)
    starts = set()
    for seed in range(40):
        made, entry = run(TimeCrop(seconds=0.5), seed, {"video": clip})
        first = round(entry["start"] * 8)
        assert entry["start"] == first / 8
        assert made["video"].frames[:, 0, 0, 0].tolist() == [first, first + 1, first + 2, first + 3]
        assert made["video"].times.tolist() == [0.0, 0.125, 0.25, 0.375]
        starts.add(first)
    assert starts >= {0, 11}


def test_jitter_moves_sounds_within_what_nobody_notices() -> None:
    moves = []
    for seed in range(200):
        given = values(seed)
        made, record = Synchronized([TimeCrop(seconds=0.8, jitter=0.1)], MODALITIES)(given, (seed,))
        start, move = record[0]["start"], record[0]["jitter"]["audio"]
        first = round((start + move) * RATE)
        assert np.array_equal(made["audio"], given["audio"][:, first : first + 800])
        moves.append(move)
    assert -0.1 <= min(moves) < -0.08
    assert 0.03 < max(moves) <= EARLY


def test_jitter_leaves_something_of_a_tiny_sound() -> None:
    for seed in range(50):
        given = values(seed) | {"audio": np.ones((1, 3), dtype=np.float32)}
        made, _ = Synchronized([TimeCrop(seconds=0.8, jitter=0.1)], MODALITIES)(given, (seed,))
        assert made["audio"].any()


@pytest.mark.parametrize("operation", [Flip(probability=1.0), Reverse(probability=1.0)])
def test_one_channel_one_frame_and_one_column_are_turned_as_well(operation: Operation) -> None:
    """What has length 1 along the turned axis goes on to torch, which refuses negative strides."""
    given = {
        "video": Clip(np.ones((1, 12, 1, 3), dtype=np.uint8), np.zeros(1), 0.5),
        "audio": np.ones((1, 500), dtype=np.float32),
        "image": np.ones((12, 1, 3), dtype=np.uint8),
    }
    for order in ([operation, Speed(probability=1.0)], [Speed(probability=1.0), operation]):
        made, _ = Synchronized(order, some(*given))(given, (0,))
        for array in (made["video"].frames, made["audio"], made["image"]):
            torch.from_numpy(array)


def test_gain_is_the_same_on_both_channels_and_never_clips() -> None:
    for seed in range(20):
        given = values(seed)
        made, entry = run(Gain(probability=1.0, decibels=(-20, 20)), seed, given)
        ratio = made["audio"] / given["audio"]
        assert np.allclose(ratio, 10 ** (entry["decibels"] / 20), rtol=1e-5)
        assert np.abs(made["audio"]).max() <= 1 + 1e-6


def test_masks_cover_what_the_record_says() -> None:
    for mode in ("same", "complementary", "independent"):
        for seed in range(10):
            given = values(seed)
            made, entry = run(TimeMask(probability=1.0, mode=mode), seed, given)  # type: ignore[arg-type]
            clip, sound, spans = made["video"], made["audio"], entry["spans"]
            for moment in np.arange(0.0005, 2.0, 0.001):
                hidden = {n: any(a <= moment < b for a, b in spans[n]) for n in ("video", "audio")}
                assert (on_screen(clip, moment) == 0).all() == hidden["video"]
                assert (sound[:, int(moment * RATE)] == 0).all() == hidden["audio"]
                if mode != "independent":
                    assert (hidden["video"] == hidden["audio"]) == (mode == "same")


def test_a_box_cuts_every_raster_at_the_same_place() -> None:
    modalities = {"image": MODALITIES["image"], "spectrogram": ImageConfig(size=16).build("spectrogram")}
    axes = {"image": "xy", "spectrogram": "x"}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = rng.uniform(0.4, 0.6, 2)
        given = {}
        for name, (height, width) in {"image": (40, 60), "spectrogram": (80, 100)}.items():
            given[name] = np.zeros((height, width, 3), np.uint8)
            given[name][int(y * height), int(x * width)] = 255
        made, record = Synchronized([Crop(scale=(0.3, 0.8), axes=axes)], modalities)(given, (seed,))
        left, top, width, height = record[0]["box"]
        if not (left + 0.05 < x < left + width - 0.05 and top + 0.05 < y < top + height - 0.05):
            continue
        for name, picture in made.items():
            row, column = (int(v[0]) for v in np.nonzero(picture[:, :, 0]))
            assert abs(column + 0.5 - (x - left) / width * picture.shape[1]) <= 1.5
            expected = (y - top) / height if name == "image" else y
            assert abs(row + 0.5 - expected * picture.shape[0]) <= 1.5
        assert made["spectrogram"].shape[0] == 80


def test_boxes_fill_the_ranges_of_area_and_shape() -> None:
    picture = {"image": np.zeros((12, 16, 3), np.uint8)}
    boxes = np.array([run(Crop(scale=(0.2, 0.5), ratio=(0.5, 2.0)), seed, picture)[1]["box"] for seed in range(400)])
    left, top, width, height = boxes.T
    areas, ratios = width * height, np.log2(width / height)
    assert 0.2 - 1e-9 <= areas.min() < 0.21
    assert 0.49 < areas.max() <= 0.5 + 1e-9
    assert -1 - 1e-9 <= ratios.min() < -0.95
    assert 0.95 < ratios.max() <= 1 + 1e-9
    assert abs(float(np.mean(ratios < 0)) - 0.5) < 0.1  # as often wide as high: uniform in the logarithm
    for start, room in ((left, 1 - width), (top, 1 - height)):
        places = start[room > 0.1] / room[room > 0.1]
        assert 0 <= places.min() < 0.02
        assert 0.98 < places.max() <= 1


@pytest.mark.parametrize("phase", [1, -1])
def test_sound_follows_the_crop(phase: int) -> None:
    """Both channels in phase, and in opposite phase, where the angle between them is the mirrored one."""
    time = np.arange(4000) / 8000
    modalities = {**some("image"), "audio": AudioConfig(rate=8000, seconds=0.5).build("audio")}
    for seed in range(20):
        place = np.random.default_rng(seed).uniform(0.1, 0.9)
        tone = np.sin(2 * np.pi * 600 * time)
        gains = np.array([np.cos(place * np.pi / 2), phase * np.sin(place * np.pi / 2)])
        given = {"image": values()["image"], "audio": (gains[:, None] * tone).astype(np.float32)}
        for pan in ("remap", "mono", "ignore"):
            made, record = Synchronized([Crop(scale=(0.3, 0.6), pan=pan)], modalities)(given, (seed,))  # type: ignore[arg-type]
            left, _, width, _ = record[0]["box"]
            powers = np.square(made["audio"]).sum(1)
            heard = np.arctan2(*np.sqrt(powers[::-1])) * 2 / np.pi
            expected = {"remap": np.clip((place - left) / width, 0, 1), "mono": 0.5, "ignore": place}[pan]
            assert abs(heard - expected) <= 0.01
            if pan == "remap":
                assert powers.sum() == pytest.approx(np.square(given["audio"]).sum(), rel=0.01)
                assert phase * float(np.prod(made["audio"], axis=0).sum()) > -1e-3 * powers.sum()


def test_operations_of_one_kind_draw_on_their_own() -> None:
    gains = Synchronized([Gain(probability=1.0), Gain(probability=1.0)], some("audio"))
    sound = {"audio": values()["audio"] / 100}
    for seed in range(5):
        first, second = (entry["decibels"] for entry in gains(sound, (seed,))[1])
        assert first != second
    flips = Synchronized([Flip(), Flip()], some("image"))
    picture = {"image": values()["image"]}
    applied = Counter(tuple(entry["applied"] for entry in flips(picture, (seed,))[1]) for seed in range(200))
    assert len(applied) == 4
    assert min(applied.values()) > 25  # 50 expected


def test_dropout_leaves_something_and_tosses_a_coin_for_each_sample() -> None:
    left: Counter[tuple[str, ...]] = Counter()
    for seed in range(300):
        made, entry = run(Dropout(modalities={"video": 0.9, "audio": 0.9, "image": 0.9, "text": 0.9}), seed)
        assert set(made) == set(values()) - set(entry["dropped"])
        assert len(made.keys() - {"label"}) >= 1
        left[tuple(sorted(made.keys() - {"label"}))] += 1
    assert len(left) >= 8
    assert all(left[(name,)] > 20 for name in ("audio", "image", "text", "video"))


def test_no_kernel_is_an_error_and_so_is_nothing_to_do() -> None:
    class Touch(Modality):
        def decode(self, data: bytes, extension: str, window: Window | None = None) -> int:
            return 0

    class Hand(Touch):
        kernels: ClassVar[Mapping[str, Kernel]] = {"flip": identity("touch has no side here")}

    class Finger(Hand):
        kernels: ClassVar[Mapping[str, Kernel]] = {"crop": Kernel(lambda value, entry, field: value)}

    views = {"eval": MODALITIES["label"].view("eval")}
    with pytest.raises(ValueError, match=r"'flip' has no kernel for modality 'touch' \(Touch\)") as error:
        Synchronized([Flip()], {**some("video", "audio"), "touch": Touch("touch", ("x",), views)})
    assert "Declare a kernel in the `kernels` of the modality" in str(error.value)
    assert Hand.kernels.keys() == {"dropout", "flip"}
    assert Finger.kernels.keys() == {"dropout", "flip", "crop"}  # its own, and those of its parents
    Synchronized([Flip()], {**some("video", "audio"), "touch": Finger("touch", ("x",), views)})
    assert list(mistakes([Speed()], some("image", "text"))) == [
        "speed has no effect: image (a still picture has no time axis); text (captions do not give the speed as a number)"
    ]
    assert "time_crop must come first" in next(mistakes([Flip(), TimeCrop(seconds=1)], MODALITIES))
    assert "mixup would give modality 'label' one class" in next(mistakes([Mixup()], MODALITIES))
    assert "got no entry for" in next(mistakes([Crop()], MODALITIES))
    assert "did you mean 'audio'" in next(mistakes([Dropout(modalities={"audoi": 0.1})], MODALITIES))


class Shelf:
    """Samples in memory in place of an index: pictures, sounds and captions of four scenes."""

    def __init__(self, broken: int | None = None) -> None:
        from mmssl.datasets.digit_scenes import encode_scene, sample_scene

        self.samples = [encode_scene(sample_scene("train", 2 * i + 1), str(i), size=32) for i in range(4)]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, ordinal: int, extensions: Any) -> RawSample:
        fields = {k: v for k, v in self.samples[ordinal].items() if k in extensions}
        if ordinal == self.broken:
            fields["wav"] = b"RIFF"
        return RawSample(str(ordinal), Origin("", "", ordinal, 0), fields)


PICTURES: dict[str, Modality] = {
    "image": ImageConfig(size=16).build("image"),
    "audio": AudioConfig(rate=8000, seconds=1.0).build("audio"),
    "text": TextConfig().build("text"),
}


def test_one_partner_and_one_weight_for_all_modalities() -> None:
    shelf: Any = Shelf()
    plain = [Synchronized([], PICTURES).load(shelf, i, ()).values for i in range(4)]
    synchronized = Synchronized([Mixup(probability=1.0)], PICTURES)
    for seed in range(500):
        own = seed % 4
        sample = synchronized.load(shelf, own, (seed,))
        entry = sample.record[0]
        assert entry["partner"] != own
        me, other = plain[own], plain[entry["partner"]]
        weights = []
        a, b, mixed = (x["image"].astype(np.float64) for x in (me, other, sample.values))
        weights.append(float(((mixed - b) * (a - b)).sum() / ((a - b) ** 2).sum()))
        levels = [np.sqrt(np.square(x["audio"]).mean()) for x in (me, other)]
        basis = np.stack([me["audio"].ravel() / levels[0], other["audio"].ravel() / levels[1]], axis=1)
        shares = np.linalg.lstsq(basis, sample.values["audio"].ravel(), rcond=None)[0]  # as loud as the weights say
        weights.append(float(shares[0] / shares.sum()))
        assert weights == pytest.approx([entry["weight"]] * 2, abs=0.01)
        assert sample.values["text"] == (f"{me['text'][0]} and {other['text'][0]}",)
        assert np.abs(sample.values["audio"]).max() <= 1 + 1e-6
        if seed < 20:
            again = synchronized.replay(shelf, own, sample.record)
            assert all(same(again.values[name], sample.values[name]) for name in PICTURES)


def test_frames_are_mixed_with_those_that_are_shown_at_the_same_moment() -> None:
    shelf: Any = Shelf()
    for number, fields in enumerate(shelf.samples[:2]):
        frames = np.full((8, 16, 16, 3), 40, np.uint8)
        frames += 20 * number * np.arange(8, dtype=np.uint8)[:, None, None, None]
        fields["mp4"] = encode_clip("mp4", frames, None, fps=8)
    shelf.samples = shelf.samples[:2]
    sample = Synchronized([Mixup(probability=1.0)], some("video")).load(shelf, 0, (0,))
    mixed = sample.values["video"].frames.mean((1, 2, 3)) - 40
    wanted = 20 * (1 - sample.record[0]["weight"]) * np.arange(8)
    assert wanted[1] > 5
    assert np.abs(mixed - wanted).max() < 2  # what the codec loses


def test_the_heavier_sample_gives_caption_and_label() -> None:
    shelf: Any = Shelf()
    for label, fields in enumerate(shelf.samples):
        fields["cls"] = str(label).encode()
    modalities = {**PICTURES, "label": MODALITIES["label"]}
    plain = [Synchronized([], modalities).load(shelf, i, ()).values for i in range(4)]
    synchronized = Synchronized([Mixup(probability=1.0, text="heavier", labels="soft")], modalities)
    heavier = Counter[bool]()
    for seed in range(40):
        sample = synchronized.load(shelf, seed % 4, (seed,))
        (entry,) = sample.record
        winner = seed % 4 if entry["weight"] > 0.5 else entry["partner"]
        assert sample.values["text"] == plain[winner]["text"]
        assert sample.values["label"] == winner
        heavier[entry["weight"] > 0.5] += 1
    assert min(heavier.values()) > 10


def test_mixed_captions_are_drawn_as_often_as_those_of_the_sample_itself() -> None:
    shelf: Any = Shelf()
    for fields in shelf.samples:
        fields["json"] = b'{"short": "a bell", "long": ["a bell rings"]}'
    text = TextConfig(captions={"long": 0.5, "short": 3.0}).build("text")
    sample = Synchronized([Mixup(probability=1.0)], {"text": text}).load(shelf, 0, ())
    assert tuple(sample.values["text"]) == ("a bell rings and a bell rings", "a bell and a bell")
    assert sample.values["text"].weights == (0.5, 3.0)


def test_partners_that_cannot_be_mixed_in_are_named() -> None:
    broken: Any = Shelf(broken=2)
    synchronized = Synchronized([Mixup(probability=1.0, text="heavier")], PICTURES)
    entries = [synchronized.load(broken, 0, (seed,)).record[0] for seed in range(20)]
    reasons = {entry.get("skipped") for entry in entries}
    assert reasons == {None, "partner_undecodable"}
    with pytest.raises(BadSample):
        synchronized.load(broken, 2, (0,))
    made, record = synchronized({"image": np.zeros((8, 8, 3), np.uint8)}, ())
    assert record[0]["skipped"] == "no_partner"
    assert (made["image"] == 0).all()
