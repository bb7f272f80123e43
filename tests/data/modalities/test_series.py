"""Series: windows are seconds of one timeline, gaps are filled alike in windows and wholes, augmentation is what its papers say."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from mmssl.core.sample import Origin
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.series import SeriesConfig, SeriesModality
from mmssl.data.modalities.views.series import fit_series, smooth_curve, warp_time
from mmssl.data.modality import DecodeError, Modality, View
from mmssl.data.samples import EncodedSample
from mmssl.data.shards.index import RawSample
from mmssl.data.synchronized.chain import Synchronized
from mmssl.data.synchronized.operation import transform
from mmssl.data.synchronized.time import TimeCrop
from mmssl.datasets.digit_render import to_wav

RATE = 100
T = np.arange(5 * RATE) / RATE
VALUE = np.stack([np.sin(2 * np.pi * 1.5 * T), 300 + 10 * np.cos(2 * np.pi * 0.7 * T), T**2]).astype(np.float32)


def build(**changes: Any) -> SeriesModality:
    settings = {"axes": ["time", "channel"], "rate": RATE, "channels": 3, "seconds": 2.0}
    return SeriesConfig(**(settings | changes)).build("ecg")


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def view(**settings: float) -> View:
    return build(views={"crop": {"kind": "random_window", **settings}}).view("crop")


def seen(one: View, seed: int = 0, value: np.ndarray = VALUE) -> torch.Tensor:
    return one(value, one.draw(value, np.random.default_rng(seed)))


@pytest.mark.parametrize("axes", [["time", "channel"], ["channel", "time"]])
@pytest.mark.parametrize("dtype", ["i2", ">f4", "f8", "u1"])
def test_axes_have_names_and_numbers_keep_their_units(axes: list[str], dtype: str) -> None:
    stored = (VALUE % 251).astype(dtype)
    value = build(axes=axes).decode(npy(stored.T if axes[0] == "time" else stored), "npy")
    assert (value.dtype, value.shape) == (np.float32, (3, 500))
    np.testing.assert_array_equal(value, stored.astype(np.float32))
    single = build(axes=["time"], channels=1)
    np.testing.assert_array_equal(single.decode(npy(stored[0]), "npy"), stored[:1].astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (VALUE[:, :, None], "shape: got shape [3, 500, 1], wanted 2 axes: time, channel"),
        (VALUE, "channels: got 500 channels, wanted 3"),
        (np.full((9, 3), np.nan), "not_finite: 27 of 27 numbers are NaN, 0 infinite; `nan: interpolate`"),
        (np.full((9, 3), np.inf), "not_finite: 0 of 27 numbers are NaN, 27 infinite"),
    ],
)
def test_others_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        build().decode(npy(array), "npy")
    assert str(caught.value).startswith(message)
    with pytest.raises(DecodeError) as caught:
        build().from_value(torch.from_numpy(array))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_texts_of_numbers_are_read_with_and_without_a_header(delimiter: str) -> None:
    lines = [delimiter.join(repr(float(x)) for x in row) for row in VALUE.T]
    modality = build(extensions=["csv"])
    for header in ([], [delimiter.join(["I", "II", "III"])]):
        text = "\r\n".join([*header, *lines, ""]).encode("utf-8-sig")
        np.testing.assert_array_equal(modality.decode(text, "csv"), VALUE)
        np.testing.assert_array_equal(modality.decode(text, "csv", (1.0, 2.0)), VALUE[:, 100:300])
        assert modality.extent(text, "csv").seconds == 5
        assert modality.inspect(text, "csv").figures["seconds"] == [5]
    single = build(axes=["time"], channels=1).decode("\n".join(map(str, VALUE[0])).encode(), "csv")
    np.testing.assert_allclose(single, VALUE[:1], rtol=1e-6)
    holed = f"1{delimiter}2{delimiter}3\n{delimiter}2{delimiter}3\n3{delimiter}2{delimiter}3".encode()
    np.testing.assert_array_equal(build(nan="interpolate").decode(holed, "csv")[0], [1, 2, 3])
    with pytest.raises(DecodeError, match="1 of 9 numbers are NaN"):
        modality.decode(holed, "csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,b,c\n", "empty: .csv of 6 bytes has no line of numbers"),
        (b"a,b,c\n1,2,3\n1,2\n", "undecodable: .csv, line 3: got ['1', '2'], wanted 3 numbers by ','"),
        (b"1,2,3\n1,x,3\n", "undecodable: .csv, line 2: got ['1', 'x', '3'], wanted 3 numbers by ','"),
        (b"1,2\n3,4\n", "channels: got 2 channels, wanted 3"),
        (b"1,2,3\n\xff\n", "undecodable: .csv is not UTF-8"),
    ],
)
def test_texts_that_are_no_series_are_refused(text: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        build().decode(text, "csv")
    assert str(caught.value).startswith(message)


def test_texts_have_a_line_of_each_time() -> None:
    with pytest.raises(DecodeError, match=r"which has a line of each time, wanted axes: \[time, channel\]"):
        build(axes=["channel", "time"]).decode(b"1,2,3\n", "csv")


def test_gaps_are_lines_also_where_a_window_begins_in_one() -> None:
    holed = VALUE.copy()
    holed[0, 50:60], holed[2, 490:] = np.nan, np.nan
    modality = build(nan="interpolate")
    whole = modality.decode(npy(holed.T), "npy")
    np.testing.assert_allclose(whole[0, 49:61], np.linspace(VALUE[0, 49], VALUE[0, 60], 12), rtol=1e-5)
    assert (whole[2, 490:] == VALUE[2, 489]).all()
    np.testing.assert_array_equal(whole[1], VALUE[1])
    np.testing.assert_array_equal(modality.decode(npy(holed.T), "npy", (0.55, 1.0)), whole[:, 55:155])
    assert build().decode(npy(holed.T), "npy", (1.0, 2.0)).shape == (3, 200)  # no gap in this window
    with pytest.raises(DecodeError, match="channel 1 has no numbers but NaN"):
        modality.decode(npy(np.where(np.arange(3)[:, None] == 1, np.nan, VALUE).T), "npy")


def test_audits_count_gaps_and_channels_that_stand_still() -> None:
    holed = VALUE.copy()
    holed[0, :5], holed[2] = np.nan, 7
    found = build().inspect(npy(holed.T), "npy")
    assert found.figures == {"seconds": [5.0], "NaN share": [pytest.approx(5 / 1500)]}
    assert found.counted == {"type": "float32"}
    assert found.flags == ("with NaN", "constant channel")
    assert found.channels is not None
    np.testing.assert_array_equal(found.channels, holed[:, 5:].T)


def test_synchronized_windows_are_the_same_seconds_as_those_of_sounds() -> None:
    """A sound and a series of one click: it stays at one time in both, from the header to the decoded window."""
    clicks = np.zeros((8 * RATE, 1), dtype=np.float32)
    clicks[350] = 1
    sound = np.zeros((8 * 1600, 1), dtype=np.float32)
    sound[350 * 16] = 1
    modalities: dict[str, Modality] = {
        "ecg": build(axes=["time", "channel"], channels=1, seconds=4.0),
        "audio": AudioConfig(rate=1600, seconds=4.0, channels="mono").build("audio"),
    }
    raw = RawSample("k", Origin("s", "s.tar", 0, 0), {"npy": npy(clicks), "wav": to_wav(sound, 1600)})
    encoded = EncodedSample(raw, 0, modalities, {"ecg": "npy", "audio": "wav"})
    assert encoded.extents == {"ecg": (8.0, 0.0), "audio": (8.0, 0.0)}
    met = 0
    for seed in range(12):
        sample = Synchronized([TimeCrop(seconds=4.0)], modalities).decode(encoded, (seed,))
        ecg, audio = sample.values["ecg"], sample.values["audio"]
        assert (ecg.shape, audio.shape) == ((1, 400), (1, 6400))
        if ecg.max() > 0 and audio.max() > 0:
            met += 1
            assert abs(int(ecg.argmax()) / RATE - int(audio.argmax()) / 1600) <= 0.5 / RATE + 1e-6
    assert met >= 6


def test_kernels_act_in_seconds() -> None:
    modality = build()

    def made(op: str, **entry: Any) -> np.ndarray:
        changed: np.ndarray = transform(
            {"op": op, "applied": True, **entry}, {"ecg": VALUE}, {"ecg": modality}, {"ecg": VALUE[:, :100] * 0}
        )["ecg"]
        assert changed.dtype == np.float32
        return changed

    np.testing.assert_array_equal(made("time_crop", start=1.0, length=2.0, jitter={}), VALUE[:, 100:300])
    np.testing.assert_array_equal(made("reverse", length=5.0), VALUE[:, ::-1])
    np.testing.assert_array_equal(made("roll", length=5.0, start=1.0), np.roll(VALUE, -100, axis=1))
    hidden = made("time_mask", length=5.0, spans={"ecg": [[1.0, 2.0]]})
    np.testing.assert_allclose(
        hidden[:, 100:200], np.repeat(VALUE.mean(1, keepdims=True), 100, 1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(np.delete(hidden, range(100, 200), 1), np.delete(VALUE, range(100, 200), 1))
    fast = made("speed", factor=str(Fraction(5, 4)))
    assert fast.shape == (3, 400)
    np.testing.assert_allclose(fast[2], (np.arange(400) / RATE * 1.25) ** 2, atol=1e-3)
    np.testing.assert_allclose(made("mixup", weight=0.25), 0.25 * VALUE, rtol=1e-5, atol=1e-5)
    longer = transform({"op": "reverse", "applied": True, "length": 6.0}, {"ecg": VALUE}, {"ecg": modality})["ecg"]
    np.testing.assert_allclose(longer[:, :100], np.repeat(VALUE.mean(1, keepdims=True), 100, 1), rtol=1e-4, atol=1e-5)


def test_windows_are_cut_and_padded_with_the_mean() -> None:
    plain = view()
    starts = {plain.draw(VALUE, np.random.default_rng(seed))["start"] for seed in range(400)}
    assert min(starts) < 15
    assert 285 < max(starts) <= 300
    np.testing.assert_allclose(plain(VALUE, {"start": 42}), VALUE[:, 42:242], rtol=1e-6)
    np.testing.assert_array_equal(build().view("eval")(VALUE, {}), VALUE[:, 150:350])
    short = fit_series(VALUE[:, :50], 80)
    np.testing.assert_array_equal(short[:, :50], VALUE[:, :50])
    np.testing.assert_allclose(short[:, 50:], np.repeat(VALUE[:, :50].mean(1, keepdims=True), 30, 1), rtol=1e-5)


def test_scaling_and_magnitude_act_about_the_mean() -> None:
    window = VALUE[:, :200]
    mean = window.mean(axis=1, keepdims=True, dtype=np.float64)
    scaled = view(scaling=0.1)(VALUE, {"start": 0, "scaling": [2.0, 0.5, 1.0]})
    np.testing.assert_allclose(scaled, mean + [[2.0], [0.5], [1.0]] * (window - mean), rtol=1e-5, atol=1e-5)
    knots = [[1.0] * 6, [1.0, 2.0, 0.5, 1.0, 1.5, 1.0], [2.0] * 6]
    bent = view(magnitude_warp=0.2)(VALUE, {"start": 0, "magnitude": knots}).numpy()
    curve = smooth_curve(knots[1], 200)
    np.testing.assert_allclose(bent[1] - mean[1], curve * (window[1] - mean[1]), atol=1e-3)
    np.testing.assert_allclose(bent[2] - mean[2], 2 * (window[2] - mean[2]), atol=1e-4)
    assert curve[[0, -1]] == pytest.approx([1.0, 1.0])
    drawn = view(magnitude_warp=0.2, scaling=0.1).draw(VALUE, np.random.default_rng(0))
    assert np.shape(drawn["magnitude"]) == (3, 6)
    assert np.std([view(scaling=0.1).draw(VALUE, np.random.default_rng(i))["scaling"] for i in range(200)]) == (
        pytest.approx(0.1, rel=0.1)
    )


def test_time_is_warped_alike_in_all_channels_and_never_runs_back() -> None:
    ramp = np.stack([np.arange(200.0), 5 * np.arange(200.0)])
    for seed in range(20):
        speeds = np.random.default_rng(seed).normal(1, 1, 6).tolist()  # five times the usual size
        warped = warp_time(ramp, speeds)
        assert (np.diff(warped[0]) > 0).all()
        np.testing.assert_allclose(warped[1], 5 * warped[0])
        assert warped[0, [0, -1]] == pytest.approx([0, 199])
    np.testing.assert_allclose(warp_time(ramp, [1.0] * 6), ramp, atol=1e-9)
    assert not torch.equal(seen(view(time_warp=0.2)), seen(view()))


def test_jitter_is_white_noise_of_a_share_of_each_channel() -> None:
    long = np.tile(VALUE, (1, 40))
    noisy = build(seconds=180.0, views={"crop": {"kind": "random_window", "jitter": 0.05}}).view("crop")
    plain = build(seconds=180.0).view("crop")
    drawn = noisy.draw(long, np.random.default_rng(0))
    noise = (noisy(long, drawn) - plain(long, {"start": drawn["start"]})).numpy()
    np.testing.assert_allclose(noise.std(1) / long.std(1), 0.05, rtol=0.03)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05


def test_dropped_channels_are_constant_and_one_stays() -> None:
    one = view(channel_dropout=0.9)
    kept = []
    for seed in range(100):
        x = seen(one, seed)
        still = (x == x[:, :1]).all(1)
        assert not still.all()
        kept.append(int((~still).sum()))
    assert 100 <= sum(kept) < 150  # one, and a tenth of the two others


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": ["channel"]}, "wanted \\[time, channel\\]"),
        ({"axes": ["time"]}, "axes: got \\['time'\\] with 3 channels"),
        ({"axes": ["time", "time"]}, "wanted \\[time, channel\\]"),
        ({"seconds": 0.001}, "wanted at least one sample"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_build(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**changes)
