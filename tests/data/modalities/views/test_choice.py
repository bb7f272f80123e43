"""A random choice: every number equally often, whatever the content."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modalities.views.choice import ChoiceConfig, ChoiceView
from mmssl.data.modality import ModalityConfig
from mmssl.data.stream.collate import BatchRow, collate


def test_every_number_is_drawn_equally_often() -> None:
    view = ChoiceConfig(choices=4).build()
    rng = np.random.default_rng(0)
    drawn = [view(None, view.draw(None, rng)) for _ in range(4000)]
    assert {(x.dtype, x.shape) for x in drawn} == {(torch.int64, ())}
    assert np.bincount(torch.stack(drawn)) / 4000 == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (ImageConfig, {"size": 16}),
        (AudioConfig, {"rate": 8000, "seconds": 1.0}),
        (VideoConfig, {"size": 16}),
        (TextConfig, {}),
    ],
)
def test_it_is_a_view_of_every_modality(config: type[ModalityConfig], values: dict[str, object]) -> None:
    modality = config.model_validate({**values, "views": {"turn": {"kind": "choice", "choices": 4}}}).build("any")
    assert isinstance(modality.view("turn"), ChoiceView)
    rows = [BatchRow(0, "a", {"any": {"turn0": torch.tensor(3)}}), BatchRow(1, "b", {})]
    assert collate(rows, {"any": modality}, {"any": {"turn": 1}})["any"]["turn0"].tolist() == [3, 0]
