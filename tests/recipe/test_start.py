"""Objectives that start from a CLIP or SigLIP checkpoint of open_clip: heads, temperature and bias come along, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mmssl.core.errors import CheckpointError
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders.frame_video import FrameVideoConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.interop.open_clip import encoder_configs
from mmssl.objectives.clip import ClipConfig
from mmssl.recipe.load import _from_scratch
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.start import start_learner
from mmssl.recipe.validate import validate_text
from tests.core.test_teacher import Dropping, Follow
from tests.interop.test_open_clip import MODELS
from tests.pipelines.conftest import RECIPE

MODEL = MODELS["vit"]


def learner(**changes: Any) -> Learner:
    image, text = encoder_configs(MODEL)
    given = {
        "pairs": (("image", "text"),), "views": {"image": "eval", "text": "tokens"}, "temperature": 0.07,
        "embedding": MODEL["embed_dim"],
    }  # fmt: skip
    encoders = {"image": image.build(), "text": text.build()}
    return Learner(encoders, ClipConfig.model_validate(given | changes).build(encoders, Plan.unknown()))


def checkpoint(folder: Path, **changes: Any) -> Path:
    file = folder / "model.safetensors"
    model = open_clip.CLIP(**MODEL, init_logit_scale=1.5, **changes)
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, file)
    return file


def test_a_sigmoid_starts_from_temperature_and_bias(tmp_path: Path) -> None:
    started = learner(loss="sigmoid")
    start_learner(started, checkpoint(tmp_path, init_logit_bias=-7.5), [])
    assert started.objective.get_parameter("logit_scale.image-text").item() == 1.5
    assert started.objective.get_parameter("logit_bias.image-text").item() == -7.5


def test_info_nce_has_no_use_for_a_bias(tmp_path: Path) -> None:
    started = learner()
    start_learner(started, checkpoint(tmp_path, init_logit_bias=-7.5), [])
    assert {name for name, p in started.objective.named_parameters() if p.ndim == 0} == {"logit_scale.image-text"}


def test_a_sigmoid_without_a_bias_to_start_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"logit_bias\.image-text"):
        start_learner(learner(loss="sigmoid"), checkpoint(tmp_path), [])


def test_another_embedding_than_the_saved_one_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refused = (
        r"projections\.text\.linear\.weight is [^\n]*\n  give `objective` the settings of the model that was saved"
    )
    with pytest.raises(CheckpointError, match=refused):
        start_learner(learner(embedding=MODEL["embed_dim"] * 2), checkpoint(tmp_path), [])


def test_a_whole_model_starts_from_its_own_towers_where_two_are_alike(tmp_path: Path) -> None:
    tower = RECIPE["encoders"]["image"]  # type: ignore[index]
    values = RECIPE | {
        "modalities": RECIPE["modalities"] | {"depth": RECIPE["modalities"]["image"]},  # type: ignore[index, operator]
        "encoders": RECIPE["encoders"] | {"depth": tower},  # type: ignore[operator]
        "objective": RECIPE["objective"]  # type: ignore[operator]
        | {
            "pairs": [["image", "text"], ["depth", "text"]],
            "views": {"image": "crop", "depth": "crop", "text": "tokens"},
        },
        "data": {"shards": ["none"]},
    }
    recipe = validate_text(Recipe, json.dumps(values), "recipe")
    modalities = recipe.build_modalities()
    before = recipe.build_learner(modalities, Plan.unknown()).state_dict()
    save_file({name: x.contiguous() for name, x in before.items()}, tmp_path / "model.safetensors")
    other = recipe.model_copy(update={"weights": tmp_path / "model.safetensors", "seed": 1}).build_learner(
        modalities, Plan.unknown()
    )
    assert all(torch.equal(x, before[name]) for name, x in other.state_dict().items())
    assert not torch.equal(before["encoders.image.class_embedding"], before["encoders.depth.class_embedding"])


def taught(seed: int) -> Learner:
    torch.manual_seed(seed)
    made = Learner({"thing": Dropping()}, Follow())
    with torch.no_grad():
        for p in [*made.teachers.parameters(), *made.objective.teacher_head.parameters()]:
            p.add_(1)
    return made


def test_teachers_come_from_the_file_or_else_from_their_students(tmp_path: Path) -> None:
    file, before = tmp_path / "model.safetensors", taught(0).state_dict()
    save_file(before, file)
    started = taught(1)
    start_learner(started, file, ["thing"])
    for name, x in started.state_dict().items():
        assert torch.equal(x, before[name]) == (
            not name.startswith("encoders.") or "net.1." in name or "scale" in name
        ), name
    started, own = taught(1), taught(1).teachers.state_dict()
    start_learner(started, file, [])  # the encoder has weights of its own: its teacher follows those
    assert all(torch.equal(x, own[name]) for name, x in started.teachers.state_dict().items())
    students = {
        name: x for name, x in before.items() if not name.startswith("teachers.") and "teacher_head" not in name
    }
    save_file(students, file)
    started = taught(1)
    start_learner(started, file, ["thing"])
    assert torch.equal(started.objective.teacher_head.network.weight, before["objective.head.weight"])


def test_a_trained_model_does_not_ask_for_what_its_encoders_started_from() -> None:
    gone = Path("gone.safetensors")
    image = VisionTransformerConfig(size=16, patch_size=8, width=8, depth=1, heads=2, weights=gone, place="a.")
    config = _from_scratch(FrameVideoConfig(image=image, weights=gone, frozen=True))
    assert config.build().width == 8  # type: ignore[attr-defined]
    assert config == FrameVideoConfig(image=image.model_copy(update={"weights": None, "place": None}), frozen=True)
