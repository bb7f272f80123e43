"""Data and rows of `learning.py` on series."""

from __future__ import annotations

import io
import tarfile
import wave
from pathlib import Path

import learning
import learning_data
import numpy as np
import pytest

from mmssl.datasets.heart import CLASS_NAMES


def wav(values: np.ndarray) -> bytes:
    """Numbers in -1 ... 1 as a file of 8 kHz and 16 bit."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((values * 32767).astype("<i2").tobytes())
    return data.getvalue()


def packed(folder: Path) -> list[tuple[np.ndarray, int]]:
    """Series and classes of a shard."""
    with tarfile.open(folder / "000000.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = sorted({name[:5] for name in found})
    return [(np.load(io.BytesIO(found[f"{key}.npy"])), int(found[f"{key}.cls"])) for key in keys]


def test_rhythms_with_labels_are_none_of_pretraining_and_noise_has_its_values(tmp_path: Path) -> None:
    learning_data.pack_rhythms(tmp_path, 60, 40)
    seen, noise, labelled, test = (packed(tmp_path / name) for name in ("train", "noise", "labelled", "test"))
    new = {CLASS_NAMES.index(name) for name in learning_data.NEW_RHYTHMS}
    assert {label for _, label in labelled} == {label for _, label in test} == new
    assert {label for _, label in seen} == {*range(len(CLASS_NAMES))} - new
    assert len(seen) + len(labelled) == 60
    for (series, _), (shuffled, _) in zip(seen, noise, strict=True):
        assert not np.array_equal(series, shuffled)
        assert sorted(map(tuple, series)) == sorted(map(tuple, shuffled)), "leads of one time stay together"


def test_the_envelope_of_a_sine_is_its_amplitude_in_its_band() -> None:
    sine = 0.5 * np.sin(2 * np.pi * 700 * np.arange(800) / 8000)
    found = learning_data.envelopes(wav(sine))
    assert found.shape == (9, 4)
    np.testing.assert_allclose(found[:, 1], 20 * np.log10(0.5), atol=0.1)
    assert (np.delete(found, 1, axis=1) < -30).all()
    assert (learning_data.envelopes(wav(np.zeros(40))) == -80).all(), "shorter than a window, and silent"


def test_speakers_of_test_envelopes_are_new(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / learning_data.SPEECH, "w") as tar:
        for digit, speaker in enumerate(("george", "theo", "lucas", "yweweler")):
            member = tarfile.TarInfo(f"recordings/{digit}_{speaker}_7.wav")
            data = wav(np.ones(800) / 2)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    learning_data.pack("envelopes", tmp_path, tmp_path / "out", 0, 0)
    assert [label for _, label in packed(tmp_path / "out" / "train")] == [0, 2]
    assert [label for _, label in packed(tmp_path / "out" / "test")] == [1, 3]


def test_a_row_learns_from_one_folder_and_is_measured_by_labels_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "ts2vec, rhythms, control"
    learning_data.pack_rhythms(tmp_path, 60, 40)
    document = learning.recipe_of(name, 0, tmp_path, None)
    assert document["data"]["shards"] == [str(tmp_path / "noise")]
    assert document["evaluators"]["knn"]["train_shards"] == [str(tmp_path / "labelled")]
    monkeypatch.setitem(learning.ROWS[name], "batch", 8)
    found = learning.run_one(name, 0, tmp_path, 1, tmp_path / "none.jsonl")
    assert {"loss", "chance_loss"} <= found["own"].keys()
    (line,) = learning.table([{**found, "before": dict.fromkeys(found["before"], 0.5)}]).splitlines()[2:]
    assert "knn/acc1" in line, "bars name scores, too"
