"""Objectives that start from a CLIP or SigLIP checkpoint of open_clip: heads, temperature and bias come along, or it is refused."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmssl.core.errors import CheckpointError, RecipeError
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.core.sample import TokenIds
from mmssl.encoders.frame_video import FrameVideoConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.interop.open_clip import encoder_configs
from mmssl.objectives.clip import ClipConfig
from mmssl.recipe.average import write_model
from mmssl.recipe.load import load
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.start import change_encoders, from_scratch, start_learner, start_lines
from mmssl.recipe.validate import validate_text
from tests.core.test_teacher import Dropping, Follow
from tests.encoders.adapters.test_two_towers import saved
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
    config = change_encoders(FrameVideoConfig(image=image, weights=gone, frozen=True), from_scratch)
    assert config.build().width == 8
    assert config == FrameVideoConfig(image=image.model_copy(update={"weights": None, "place": None}), frozen=True)


def written(recipe: Recipe, folder: Path, **changes: Any) -> Path:
    """The file of a model as the recipe builds it."""
    made = recipe.model_copy(update=changes).build_learner(recipe.build_modalities(), Plan.unknown())
    save_file({name: x.contiguous() for name, x in made.state_dict().items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def small(**changes: Any) -> Recipe:
    values = RECIPE | {"data": {"shards": ["none"]}} | changes
    return validate_text(Recipe, json.dumps(values, default=str), "recipe")


def test_the_table_of_a_start_tells_what_is_random_resized_and_unused(tmp_path: Path) -> None:
    file = written(small(), tmp_path)
    tower = RECIPE["encoders"]["image"] | {"size": 64}  # type: ignore[index]
    pictures = RECIPE["modalities"]["image"] | {"size": 64}  # type: ignore[index]
    sigmoid = RECIPE["objective"] | {"loss": "sigmoid"}  # type: ignore[operator]
    changed = {
        "modalities": RECIPE["modalities"] | {"image": pictures},  # type: ignore[operator]
        "encoders": RECIPE["encoders"] | {"image": tower},  # type: ignore[operator]
        "objective": sigmoid,
        "weights": file,
    }
    other = small(**changed)
    with pytest.raises(
        CheckpointError, match=r"missing in the checkpoint: logit_bias[^\n]*\n[^\n]*partial: true takes"
    ):
        other.build_learner(other.build_modalities(), Plan.unknown())
    other = small(**changed, partial=True)
    lines = start_lines(other.build_learner(other.build_modalities(), Plan.unknown()), 0)
    count = len(small().encoders["image"].build().state_dict())
    assert lines[0].split() == ["initial", "weights", "exact", "resized", "random", "from"]
    assert lines[1].split() == ["encoders.image", str(count - 1), "1", "0", str(file)]
    assert lines[3].split() == ["objective", "3", "0", "1", str(file)]
    assert lines[4] == "resized in encoders.image: positional_embedding [17, 32] to [65, 32]"
    assert lines[5] == "random in objective: logit_bias.image-text"
    assert len(lines) == 6
    state = dict(load_file(file)) | {"objective.extra": torch.zeros(1)}
    save_file(state, file)
    lines = start_lines(other.build_learner(other.build_modalities(), Plan.unknown()), 0)
    assert lines[6] == f"unused in {file} (1): objective.extra"
    assert start_lines(small().build_learner(small().build_modalities(), Plan.unknown()), 7) == [
        "initial weights: all at random (seed 7)"
    ]
    with pytest.raises(RecipeError, match="partial: got true without weights"):
        small(partial=True)


@pytest.mark.parametrize("heads", [{}, {"image": {"kind": "identity"}, "text": {"kind": "identity"}}])
def test_towers_of_open_clip_with_a_second_projection_are_refused(tmp_path: Path, heads: dict[str, Any]) -> None:
    """Towers of kind open_clip end in the projection: another one would be random."""
    file = checkpoint(tmp_path, init_logit_bias=-7.5)
    settings = MODEL | {"custom_text": True}
    recipe = small(
        modalities=RECIPE["modalities"] | {"image": RECIPE["modalities"]["image"] | {"size": 48}},  # type: ignore[index, operator]
        encoders={name: {"kind": "open_clip", "model": settings, "tower": name} for name in ("image", "text")},
        objective=RECIPE["objective"] | {"embedding": 24, "loss": "sigmoid", "heads": heads},  # type: ignore[operator]
        weights=file,
    )
    modalities = recipe.build_modalities()
    modalities["text"].token_ids = TokenIds(16, 100)  # type: ignore[attr-defined]
    if heads:
        started = recipe.build_learner(modalities, Plan.unknown())
        assert started.objective.get_parameter("logit_bias.image-text").item() == -7.5
        assert not any("random" in line or "unused" in line for line in start_lines(started, 0)[1:])
    else:
        with pytest.raises(CheckpointError, match=r"projections\.\w+\.linear\.weight is"):
            recipe.build_learner(modalities, Plan.unknown())


def test_projections_and_temperature_of_a_transformers_folder_come_along(tmp_path: Path) -> None:
    model = saved("CLIP", tmp_path)
    texts = {"tokenizer": {"kind": "clip", "context_length": 16}}
    towers: dict[str, Any] = {
        "image": {"kind": "hf_vision", "path": str(tmp_path), "pool": "pooler", "mean": [0.5] * 3, "std": [0.5] * 3},
        "text": {"kind": "hf_text", "path": str(tmp_path), "pool": "eos"},
    }
    recipe = small(encoders=towers, modalities=RECIPE["modalities"] | {"text": {"kind": "text", **texts}})  # type: ignore[operator]
    modalities = recipe.build_modalities()
    modalities["text"].token_ids = TokenIds(16, 60)  # type: ignore[attr-defined]
    lines = start_lines(recipe.build_learner(modalities, Plan.unknown()), 0)
    assert lines[4].startswith("random in objective: projections.image.linear.weight, projections.text.linear.weight")
    started = recipe.model_copy(update={"weights": tmp_path}).build_learner(modalities, Plan.unknown())
    assert torch.equal(started.objective.get_parameter("projections.text.linear.weight"), model.text_projection.weight)
    assert torch.equal(started.objective.get_parameter("logit_scale.image-text"), model.logit_scale)
    assert len(start_lines(started, 0)) == 4  # all exact, and all used


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod.", "ema_model."])
def test_whole_models_start_from_checkpoints_of_every_trainer(prefix: str, tmp_path: Path) -> None:
    """Towers, projections and temperature are found under the prefix, also beside other tensors and settings."""
    settings = MODEL | {"text_cfg": MODEL["text_cfg"] | {"vocab_size": 49408}}
    image, text = encoder_configs(settings)
    recipe = small(
        modalities=RECIPE["modalities"] | {"image": RECIPE["modalities"]["image"] | {"size": 48}},  # type: ignore[index, operator]
        encoders={"image": image.model_dump(mode="json"), "text": text.model_dump(mode="json")},
        objective=RECIPE["objective"] | {"embedding": 24},  # type: ignore[operator]
        weights=tmp_path / "epoch.pt",
    )
    state = open_clip.CLIP(**settings, init_logit_scale=1.5).state_dict()
    stored = {prefix + name: x for name, x in state.items()}
    if prefix == "ema_model.":
        stored |= {f"model.{name}": torch.zeros_like(x) for name, x in state.items()}
    torch.save({"state_dict": stored, "args": Namespace(lr=1e-3)}, tmp_path / "epoch.pt")
    started = recipe.build_learner(recipe.build_modalities(), Plan.unknown())
    assert started.objective.get_parameter("logit_scale.image-text").item() == 1.5
    assert torch.equal(started.objective.get_parameter("projections.image.linear.weight"), state["visual.proj"].T)
    assert torch.equal(started.encoders["text"].get_parameter("positional_embedding"), state["positional_embedding"])
    assert not any("random" in line for line in start_lines(started, 0)[1:])
    del (
        stored[f"{prefix}logit_scale"],
        stored["model.logit_scale" if prefix == "ema_model." else f"{prefix}text_projection"],
    )
    torch.save(stored, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint: .*logit_scale.*\n.*partial: true"):
        recipe.build_learner(recipe.build_modalities(), Plan.unknown())
    partial = recipe.model_copy(update={"partial": True})
    lines = start_lines(partial.build_learner(recipe.build_modalities(), Plan.unknown()), 0)
    assert any(line.startswith("random in objective: ") and "logit_scale.image-text" in line for line in lines)


TOWER: dict[str, Any] = {"kind": "vit", "size": 16, "patch_size": 8, "width": 8, "depth": 1, "heads": 2}


def predicting(weights: Path) -> Recipe:
    """Masked prediction of the features of a frozen encoder."""
    views = {"crop": {"kind": "resized_crop"}, "mask": {"kind": "blocks", "patch_size": 8, "ratio": 0.5, "smallest": 1}}
    targets = {"kind": "features", "encoder": TOWER | {"weights": str(weights)}}
    return small(
        modalities={"image": {"kind": "image", "size": 16, "views": views}},
        encoders={"image": TOWER},
        objective={
            "kind": "masked_prediction", "modality": "image", "view": "crop", "mask": "mask", "targets": targets,
            "predictor": {"kind": "linear"},
        },
    )  # fmt: skip


def test_a_frozen_encoder_of_targets_keeps_its_weights_and_is_in_the_table(tmp_path: Path) -> None:
    """Also where the rest starts, in part, from a model without it; a model with it brings it along."""
    teacher, whole, bare = (tmp_path / f"{name}.safetensors" for name in ("teacher", "whole", "bare"))
    save_file(VisionTransformerConfig(**TOWER).build().state_dict(), teacher)  # type: ignore[arg-type]
    recipe = predicting(teacher)
    state = {
        name: x.contiguous()
        for name, x in recipe.build_learner(recipe.build_modalities(), Plan.unknown()).state_dict().items()
    }
    save_file(state, whole)
    save_file({name: x for name, x in state.items() if "targets" not in name}, bare)
    frozen, count = "objective.targets.frozen.encoder", str(len(load_file(teacher)))
    for changes, expected, of_objective in (
        ({}, [count, "0", "0", str(teacher)], ["0", "0", "3", "-"]),
        ({"weights": bare, "partial": True}, [count, "0", "0", str(teacher)], ["3", "0", "0", str(bare)]),
        ({"weights": whole}, None, [str(3 + int(count)), "0", "0", str(whole)]),
    ):
        started = recipe.model_copy(update=changes).build_learner(recipe.build_modalities(), Plan.unknown())
        lines = start_lines(started, 0)
        rows = {line.split()[0]: line.split()[1:] for line in lines}
        assert (rows.get(frozen), rows["objective"]) == (expected, of_objective), changes
        assert not any(line.startswith("random in objective: targets") for line in lines)
        assert all(torch.equal(x, started.state_dict()[f"{frozen}.{name}"]) for name, x in load_file(teacher).items())


def in_clips(weights: Path) -> Recipe:
    """Contrast of texts with clips, whose frames an encoder of pictures reads."""
    video = {"kind": "video", "size": 16, "frames": 2, "seconds": 1.0}
    return small(
        modalities={"video": video, "text": RECIPE["modalities"]["text"]},  # type: ignore[index]
        encoders={
            "video": {"kind": "frame_video", "frames": 2, "image": TOWER | {"weights": str(weights)}},
            "text": RECIPE["encoders"]["text"],  # type: ignore[index]
        },
        objective=RECIPE["objective"] | {"pairs": [["video", "text"]], "views": {"video": "crop", "text": "tokens"}},  # type: ignore[operator]
    )


@pytest.mark.parametrize(
    ("recipe", "inside"),
    [(predicting, "objective.targets.frozen.encoder."), (in_clips, "encoders.video.image.")],
)
@pytest.mark.parametrize("evaluated", ["encoder", "teacher"])
def test_an_encoder_inside_of_another_part_starts_from_a_run_and_then_needs_it_no_more(
    recipe: Callable[[Path], Recipe], inside: str, evaluated: str, tmp_path: Path
) -> None:
    """Of a run with a teacher it is the network that the run evaluates."""
    views = {"crop": {"kind": "resized_crop", "size": 16}}
    head = {"kind": "mlp", "hidden": 8}
    objective: dict[str, dict[str, Any]] = {
        "encoder": {"kind": "simclr", "temperature": 0.1, "embedding": 8, "head": head},
        "teacher": {
            "kind": "dino",
            "momentum": 0.9,
            "temperature": 0.1,
            "teacher_temperature": 0.04,
            "embedding": 8,
            "prototypes": 8,
            "targets": {"kind": "centring", "momentum": 0.9},
            "head": head,
        },
    }
    first = small(
        modalities={"image": {"kind": "image", "size": 16, "views": views}},
        encoders={"image": TOWER},
        objective=objective[evaluated] | {"modality": "image", "view": "crop"},
    )
    made = first.build_learner(first.build_modalities(), Plan.unknown())
    with torch.no_grad():
        for p in made.teachers.parameters():
            p.add_(1)
    write_model(tmp_path / "first", first, made, {})
    prefix = "teachers.image.network." if evaluated == "teacher" else "encoders.image."
    expected = {name.removeprefix(prefix): x for name, x in made.state_dict().items() if name.startswith(prefix)}
    second = recipe(tmp_path / "first")
    started = second.build_learner(second.build_modalities(), Plan.unknown())
    assert expected
    assert all(torch.equal(x, started.state_dict()[inside + name]) for name, x in expected.items())
    write_model(tmp_path / "second", second, started, {})
    shutil.rmtree(tmp_path / "first")
    again = load(tmp_path / "second")
    assert set(again.embedding.encoders) == set(second.encoders)
