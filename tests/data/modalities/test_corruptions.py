"""Corruptions of evaluation views: of their type and range, repeatable, and worse with severity."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.corruptions import PICTURES, SEVERITIES, SOUNDS, corrupted, corruptions_of
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modality import Modality

IMAGE: Modality = ImageConfig(size=32).build("image")
AUDIO: Modality = AudioConfig(rate=8000, seconds=0.5).build("audio")


def value(modality: Modality) -> np.ndarray:
    rng = np.random.default_rng(0)
    if modality is IMAGE:
        return rng.integers(40, 200, (32, 32, 3), dtype=np.uint8)
    wave: np.ndarray = rng.standard_normal((1, 4000)).astype(np.float32) * 0.2
    return wave


@pytest.mark.parametrize(
    ("modality", "kind"), [(IMAGE, kind) for kind in PICTURES] + [(AUDIO, kind) for kind in SOUNDS]
)
def test_a_view_keeps_its_form_and_loses_more_with_severity(modality: Modality, kind: str) -> None:
    clean = modality.view("eval")(value(modality), {})
    distances = []
    for severity in SEVERITIES:
        view = pickle.loads(pickle.dumps(corrupted(modality, kind, severity))).view("eval")
        x = view(value(modality), {})
        assert (x.shape, x.dtype) == (clean.shape, clean.dtype)
        assert torch.equal(x, view(value(modality), {})), "the same content has the same noise"
        assert bool(torch.isfinite(x.float()).all())
        distances.append(float((x.float() - clean.float()).norm()))
    assert 0 < distances[0] < distances[2] < distances[4]
    assert view.blank().shape == modality.view("eval").blank().shape


def test_other_content_has_other_noise() -> None:
    view = corrupted(IMAGE, "gaussian_noise", 3).view("eval")
    black, grey = (view(np.full((40, 40, 3), level, np.uint8), {}).float() for level in (100, 120))
    assert (
        float((black - black.mean()).flatten() @ (grey - grey.mean()).flatten())
        < 0.1 * float(black.var()) * black.numel()
    )


def test_only_pictures_and_sounds_have_corruptions() -> None:
    assert corruptions_of(IMAGE) is PICTURES
    assert corruptions_of(AUDIO) is SOUNDS
    assert corruptions_of(LabelConfig().build("label")) == {}
