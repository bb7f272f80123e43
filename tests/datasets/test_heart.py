"""Recordings of hearts: rhythms are those that captions and classes say, found by estimators; splits share no patient."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.data.modalities.series import SeriesConfig
from mmssl.datasets import heart
from mmssl.datasets.heart import CLASS_NAMES, PATIENTS, RATE, RATES, captions, encode_record, render, sample_record

RECORDS = [sample_record("train", number) for number in range(240)]


def of(name: str) -> list[heart.HeartRecord]:
    return [record for record in RECORDS if CLASS_NAMES[record.label] == name]


def peaks(record: heart.HeartRecord, around: int = 11) -> np.ndarray:
    """Seconds of the samples of lead II that stand highest above their surroundings, 0.25 s apart or more."""
    lead = render(record)[:, 1].astype(float)
    lead = lead - np.convolve(np.pad(lead, around // 2, "edge"), np.ones(around) / around, "valid")
    found: list[int] = []
    for place in np.argsort(-lead):
        if lead[place] < 0.5 * lead.max():
            break
        if all(abs(place - other) >= RATE / 4 for other in found):
            found.append(int(place))
    return np.sort(found) / RATE


@pytest.mark.parametrize("name", ["sinus rhythm", "sinus bradycardia", "sinus tachycardia", "first degree block"])
def test_beats_come_at_the_rate_of_the_caption(name: str) -> None:
    low, high = RATES[CLASS_NAMES.index(name)]
    for record in of(name)[:10]:
        distances = np.diff(peaks(record))
        assert low <= record.rate <= high
        assert 60 / distances.mean() == pytest.approx(record.rate, rel=0.08)
        assert distances.std() / distances.mean() < 0.1


def test_fibrillating_hearts_are_irregular_and_premature_beats_come_in_pairs() -> None:
    spread = [np.diff(peaks(record)).std() / np.diff(peaks(record)).mean() for record in of("atrial fibrillation")[:15]]
    assert np.median(spread) > 0.12
    for record in of("ventricular bigeminy")[:8]:
        times = np.diff(peaks(record, 61))
        turns = np.sign(np.diff(times))
        assert (turns[1:] != turns[:-1]).all()  # short, long, short, long


def test_records_are_functions_of_their_number_and_splits_share_no_patient() -> None:
    assert RECORDS[:5] == [sample_record("train", number) for number in range(5)]
    assert sample_record("test", 0) != sample_record("train", 0) != sample_record("train", 0, seed=1)
    seen = {split: {sample_record(split, number).patient for number in range(500)} for split in PATIENTS}
    assert not seen["train"] & seen["test"] | seen["train"] & seen["validation"] | seen["validation"] & seen["test"]
    assert {record.label for record in RECORDS} == set(range(len(CLASS_NAMES)))


def test_samples_say_what_was_drawn() -> None:
    sample = encode_record(RECORDS[0], "k")
    array = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
    assert (array.dtype, array.shape) == (np.int16, (600, 3))
    assert sample == encode_record(RECORDS[0], "k")
    document = json.loads(sample["json"])
    assert sample["txt"].decode() in document["captions"] == list(captions(RECORDS[0]))
    assert document["name"] in sample["txt"].decode()
    assert int(sample["cls"]) == RECORDS[0].label
    modality = SeriesConfig(axes=["time", "channel"], rate=100, channels=3, seconds=5.0).build("ecg")
    np.testing.assert_array_equal(modality.decode(sample["npy"], "npy"), array.T)


def test_shards_are_written_once(tmp_path: Path) -> None:
    manifest = heart.write(tmp_path, train=4, validation=0, test=2, shards=2)
    assert [(tmp_path / shard.path).parent.name for shard in manifest.shards] == ["train", "train", "test", "test"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    heart.write(tmp_path, train=4, validation=0, test=2, shards=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")} == before
    with pytest.raises(ValueError, match="wanted records"):
        heart.write(tmp_path, train=0, validation=0, test=0)
