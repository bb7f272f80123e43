"""Scenes of land: bands tell the covers, the near infrared tells plants, and captions say what was drawn."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from mmssl.data.modalities.array import ArrayConfig
from mmssl.datasets import land
from mmssl.datasets.land import CLASS_NAMES, FEATURES, SPECTRA, UNSEEN, captions, encode_land, render, sample_land

SCENES = [sample_land("train", number) for number in range(300)]


def plain(name: str) -> list[np.ndarray]:
    """Median reflectance of each band, of scenes without clouds, at the usual light."""
    return [
        np.median(render(scene), axis=(1, 2)) / scene.light
        for scene in SCENES
        if CLASS_NAMES[scene.label] == name and FEATURES[scene.feature] in ("", "a road")
    ]


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_bands_are_those_of_the_cover(name: str) -> None:
    found = np.median(plain(name), axis=0)
    assert int(np.abs(np.log(found / SPECTRA)).sum(1).argmin()) == CLASS_NAMES.index(name)


def test_the_near_infrared_tells_healthy_plants_from_dry_ones() -> None:
    healthy, dry = (np.array(plain(name)) for name in ("healthy fields", "dry fields"))
    assert healthy[:, 3].min() > 1.3 * dry[:, 3].max()
    assert abs(np.log(healthy[:, :3].mean(0) / dry[:, :3].mean(0))).max() < 0.15


def test_features_are_seen_and_named() -> None:
    for scene in SCENES[:60]:
        feature, cover = FEATURES[scene.feature], CLASS_NAMES[scene.label]
        assert (cover, feature) not in UNSEEN
        assert all((feature in text) == bool(feature) or not feature for text in captions(scene))
        bare = render(land.Land(scene.label, 0, scene.light, scene.form, scene.noise))
        apart = np.abs(render(scene).astype(int) - bare).max(0) > 1000 * scene.light
        assert (apart.mean() > 0.01) == bool(feature) or cover in ("marsh", "snow", "open water", "forest")


def test_samples_say_what_was_drawn() -> None:
    sample = encode_land(SCENES[0], "k", 32)
    array = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
    assert (array.dtype, array.shape) == (np.uint16, (4, 32, 32))
    assert sample == encode_land(SCENES[0], "k", 32)
    document = json.loads(sample["json"])
    assert sample["txt"].decode() in document["captions"] == list(captions(SCENES[0]))
    assert int(sample["cls"]) == SCENES[0].label
    modality = ArrayConfig(axes=["channel", "height", "width"], channels=4, size=32).build("bands")
    np.testing.assert_array_equal(modality.decode(sample["npy"], "npy"), array.transpose(1, 2, 0))


def test_shards_are_written_once(tmp_path: Path) -> None:
    land.write(tmp_path, train=4, validation=0, test=2, shards=2, size=16)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert len(before) == 4
    land.write(tmp_path, train=4, validation=0, test=2, shards=2, size=16)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")} == before
    with pytest.raises(ValueError, match="wanted scenes"):
        land.write(tmp_path, train=0, validation=0, test=0)
