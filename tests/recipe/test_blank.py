"""Blank samples are what an objective gets, and views that are finished for an encoder must fit it."""

from __future__ import annotations

import pytest
import torch

from mmssl.core.errors import RecipeError
from mmssl.core.plan import Plan
from mmssl.recipe.blank import blank_batch, unfinished_views
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import find_recipe

SMALL = ["encoders.audio.layers=[1, 1]", "encoders.audio.channels=8"]
WAVEFORMS = "encoders.audio={kind: waveform_transformer, seconds: 0.95, channels: 16, width: 32, depth: 1, heads: 2}"


def byol_a(*overrides: str) -> Recipe:
    return find_recipe("audio/byol_a_rn50", ["objective.head.hidden=8", "objective.predictor.hidden=8", *overrides])


def test_views_of_blank_samples_are_finished() -> None:
    recipe = byol_a(*SMALL)
    modalities = recipe.build_modalities()
    assert list(unfinished_views(modalities)["audio"]) == ["augmented"]
    batch = blank_batch(recipe.build_learner(modalities, Plan.unknown()), modalities, 3)
    silence = (torch.tensor(1.2e-7).log() + 5.492) / 5.039
    for view in ("augmented0", "augmented1"):
        torch.testing.assert_close(batch["audio"][view], silence.expand(3, 1, 64, 96))


def test_an_encoder_that_takes_no_spectrograms_is_named() -> None:
    recipe = byol_a(WAVEFORMS)
    modalities = recipe.build_modalities()
    learner = recipe.build_learner(modalities, Plan.unknown())
    with pytest.raises(RecipeError, match=r"modalities: a view of kind byol_a needs .* and got WaveformTransformer"):
        blank_batch(learner, modalities, 1)
