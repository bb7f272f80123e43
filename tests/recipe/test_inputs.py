"""Sounds that a front-end of fixed frames would fill with silence, or cut: refused of encoders, warned of for views."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import RecipeError
from mmssl.data.modalities.audio import AudioConfig
from mmssl.datasets import digit_scenes
from mmssl.encoders.adapters.transformers_audio import HfAstConfig
from mmssl.encoders.audio_resnet import AudioResNetConfig
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.recipe.inputs import check_inputs
from mmssl.recipe.recipe import load_recipe

AST = {"kind": "ast"}


def transformer(seconds: float, front_end: dict[str, Any]) -> AudioTransformerConfig:
    return AudioTransformerConfig(front_end=front_end, seconds=seconds, width=16, depth=1, heads=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "front_end", "said"),
    [
        (5.0, AST, "got 5, of which 498 frames are made, and the front_end has 1024: 51 % of each would be silence"),
        (
            11.0,
            AST,
            "got 11, of which 1098 frames are made, and the front_end has 1024: the end of each sound would be",
        ),
        (2.0, {**AST, "frames": 97}, "of which 198 frames are made, and the front_end has 97: the end"),
    ],
)
def test_seconds_that_are_not_the_frames(seconds: float, front_end: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        check_inputs({"sound": transformer(seconds, front_end)}, {})
    assert "encoders.sound.seconds: got" in str(caught.value)
    assert "set front_end.frames to the former, or seconds to" in str(caught.value)


def test_seconds_that_are(caplog: pytest.LogCaptureFixture) -> None:
    """AST's ten seconds, ImageBind's two, and any length where the number of frames is free."""
    for seconds, front_end in ((10.0, AST), (2.0, {"kind": "imagebind"}), (5.0, {**AST, "frames": 498})):
        check_inputs({"sound": transformer(seconds, front_end)}, {"sound": AudioConfig(rate=16_000, seconds=seconds)})
    free = AudioResNetConfig(
        front_end={"kind": "kaldi"},
        seconds=0.5,
        layers=(1, 1),
        channels=8,
        pool="mean",  # type: ignore[arg-type]
    )
    check_inputs({"sound": free}, {"sound": AudioConfig(rate=16_000, seconds=7.0)})
    assert not caplog.records


def test_frames_that_fill_no_patch_may_be_cut_off() -> None:
    """One second makes 101 frames of 10 ms: the last one, of half a window of sound, has no place in patches of two."""
    front_end: dict[str, Any] = {"kind": "mel", "rate": 8000, "window": 256, "hop": 80, "mels": 16}
    free, fixed, odd = (
        AudioTransformerConfig(front_end=some, seconds=seconds, patch_size=(16, 2), width=16, depth=1, heads=1)  # type: ignore[arg-type]
        for seconds, some in ((1.0, front_end), (1.0, front_end | {"frames": 100}), (1.01, front_end | {"frames": 101}))
    )
    check_inputs({"sound": fixed}, {})
    assert fixed.build().grid == free.build().grid == (1, 50)
    for frames, lost in ((100, fixed.model_copy(update={"seconds": 1.01})), (101, odd)):
        with pytest.raises(RecipeError, match=f"of which 102 frames are made, and the front_end has {frames}: the end"):
            check_inputs({"sound": lost}, {})


def test_views_of_another_length_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_inputs({"sound": transformer(10.0, AST)}, {"sound": AudioConfig(rate=16_000, seconds=4.0)})
    (record,) = caplog.records
    assert record.getMessage() == (
        "modalities.sound.seconds: got 4, of which 398 frames are made, and the front_end has 1024: "
        "61 % of each would be silence"
    )


def test_a_model_of_another_library_says_it_too(caplog: pytest.LogCaptureFixture) -> None:
    encoder = HfAstConfig(config={"model_type": "audio-spectrogram-transformer"}, front_end=AST)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        check_inputs({"sound": encoder}, {"sound": AudioConfig(rate=16_000, seconds=10.0)})
        assert not caplog.records
        check_inputs({"sound": encoder}, {"sound": AudioConfig(rate=16_000, seconds=12.0)})
    (record,) = caplog.records
    assert record.getMessage() == (
        "modalities.sound.seconds: got 12, of which 1198 frames are made, and the front_end has 1024: "
        "the end of each sound would be cut off"
    )


def test_a_run_that_begins_is_refused_and_one_that_goes_on_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digit_scenes.write(tmp_path, train=4, validation=0, test=0, shards=1)
    front_end = "encoders.audio.front_end={kind: mel, rate: 8000, window: 256, hop: 80, mels: 64, frames: 50}"
    small = ["data.workers=0", "batch_size=4", "evaluators={}", "duration=1 steps", "schedule.warmup=0 steps"]
    recipe = load_recipe(
        Path(__file__).parents[2] / "configs/quickstart/image_text_audio.yaml",
        [f"data.shards=[{tmp_path}/train]", f"output={tmp_path}", front_end, *small],
    )
    launch = recipe.training.launch()
    try:
        with pytest.raises(RecipeError, match=r"encoders\.audio\.seconds: got 1, of which 101 frames are made"):
            recipe.build(launch)
        monkeypatch.setattr("mmssl.recipe.recipe.checkpoints", lambda folder: [folder / "step_00000001"])
        recipe.build(launch).state.stream.close()
    finally:
        launch.close()
