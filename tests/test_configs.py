"""Every shipped recipe is complete: it reads, resolves, builds and takes a finite step with a tiny model on tiny data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from pydantic import TypeAdapter

from mmssl.core.config import Config
from mmssl.core.encoder import EmbeddingModel
from mmssl.core.plan import Plan
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.synchronized.time import TimeCrop
from mmssl.datasets import digit_scenes, heart, land, moving_scenes
from mmssl.encoders.resnet import ResNetConfig
from mmssl.interop.open_clip import ClipState, to_open_clip
from mmssl.objectives.parts.frozen_features import TokenEncoderConfig
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.shipped import find_recipe, shipped_recipes
from mmssl.recipe.strict_yaml import parse_yaml
from mmssl.recipe.validate import validate_text
from mmssl.training.runtime.signals import StopSignals
from tests.pretended.cuda import pretended_cuda

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FOLDERS = {
    "quickstart",
    "image_text",
    "image",
    "audio",
    "audio_text",
    "text",
    "audio_visual",
    "tri_modal",
    "video",
    "array",
    "series",
}
NAMES = sorted(shipped_recipes())
FOLDER = {"video": "clips", "array": "land", "series": "heart"}
"""Modality -> folder of its tiny shards; of all others: "scenes"."""
EMBEDDING = 64


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and what the recipes with other modalities read: see `FOLDER`."""
    folder = tmp_path_factory.mktemp("shards")
    digit_scenes.write(folder / "scenes", train=32, validation=16, test=16, shards=2)
    moving_scenes.write(folder / "clips", train=16, validation=8, test=8, shards=1, size=32, fps=8)
    land.write(folder / "land", train=16, validation=8, test=8, shards=1, size=32)
    heart.write(folder / "heart", train=16, validation=8, test=8, shards=1)
    return folder


def test_all_recipes_are_counted() -> None:
    files = [path for path in CONFIGS.rglob("*.y*ml") if path.parent.name not in ("accelerate", "suites")]
    assert len(list(CONFIGS.rglob("*.yaml"))) == len(list(CONFIGS.rglob("*.y*ml")))
    assert len(files) == len(NAMES)
    assert {name.split("/")[0] for name in NAMES} == FOLDERS


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_recipe_reads_back_equal(name: str) -> None:
    recipe = find_recipe(name)
    assert validate_text(Recipe, recipe.to_yaml(), "resolved") == recipe
    assert recipe.name in (name.split("/")[-1], name.replace("/", "_"))


@pytest.mark.parametrize("name", NAMES)
def test_it_says_how_to_run_it(name: str) -> None:
    first = [line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(f"pretrain {name}" in line for line in first), "the command that runs it stands atop each recipe"


def test_pictures_of_all_views_are_whole_multiples_of_what_encoders_take() -> None:
    """Checked at the start of a run by encoding one, for which networks of these sizes are too slow in tests."""
    for name in NAMES:
        recipe = find_recipe(name)
        for modality, encoder in recipe.encoders.items():
            stride = 32 if isinstance(encoder, ResNetConfig) else getattr(encoder, "patch_size", 1)
            for kind, view in getattr(recipe.modalities[modality], "views", {}).items():
                size = getattr(view, "size", None)
                assert size is None or np.all(size % np.array(stride) == 0), (
                    f"{name}: {modality}.{kind} has {size} pixels"
                )


def test_another_default_for_an_inherited_setting_keeps_its_limits() -> None:
    def below(config: type[Config]) -> Iterator[type[Config]]:
        for child in config.__subclasses__():
            yield child
            yield from below(child)

    lost = [
        f"{child.__name__}.{name} of {parent.__name__}"
        for child in below(Config)
        for parent in child.__mro__[1:]
        for name, field in getattr(parent, "model_fields", {}).items()
        if not set(map(repr, field.metadata)) <= set(map(repr, child.model_fields[name].metadata))
        and "MaxLen(max_length=0)" not in map(repr, child.model_fields[name].metadata)  # none is allowed
    ]
    assert not lost


def test_videos_and_long_sounds_are_decoded_in_windows() -> None:
    """But for clips of whole videos, words of a second, views of CLAP and SimCLR from anywhere in a sound, and samples without
    sound, each of which would be noted.

    Without `seconds` a clip spreads its frames over all that is decoded, whatever `fps` is.
    """
    whole = {
        name
        for name, recipe in ((name, find_recipe(name)) for name in NAMES)
        if not any(isinstance(one, TimeCrop) for one in recipe.data.synchronized)
        for timed in recipe.modalities.values()
        if isinstance(timed, VideoConfig | AudioConfig) and timed.seconds != 1.0
    }
    assert whole == {"video/clip4clip_vit_b_32", "audio_text/clap_simclr_ast_b", "tri_modal/bind_vit_b_32"}


def test_windows_of_usual_videos_are_not_too_large() -> None:
    """What the recipes decode at once of a video of 1280 x 720 with 30 frames a second."""
    seen = 0
    for recipe in map(find_recipe, NAMES):
        crop = next((one for one in recipe.data.synchronized if isinstance(one, TimeCrop)), None)
        for modality in recipe.modalities.values():
            if crop is not None and isinstance(modality, VideoConfig):
                seen += 1
                assert crop.seconds * min(30, modality.fps or 30) * 1280 * 720 * 3 <= modality.max_bytes, recipe.name
    assert seen == 12


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_steps(name: str, shards: Path, tmp_path: Path) -> None:
    build_and_step(name, shards, tmp_path, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_steps_on_a_pretended_gpu(name: str, shards: Path, tmp_path: Path) -> None:
    timm = '"timm"' in find_recipe(name).model_dump_json()  # its test network resizes positions; the recipe's does not
    with pretended_cuda(deterministic=not timm):
        build_and_step(name, shards, tmp_path, "cuda")


def build_and_step(name: str, shards: Path, tmp_path: Path, device: str) -> None:
    given = parse_yaml((CONFIGS / f"{name}.yaml").read_text(), name).value
    made = next((FOLDER[modality] for modality in given["modalities"] if modality in FOLDER), "scenes")
    values = tiny(given, shards / made, tmp_path) | {"device": device}
    recipe = validate_text(Recipe, json.dumps(values), name)
    weights = provide_weights(values, tmp_path)
    launch = recipe.training.launch()
    run = recipe.build(launch)
    try:
        for part, tensors in weights.items():
            state = run.state.learner.encoders[part].state_dict()
            assert all((state[key].cpu() == tensor).all() for key, tensor in tensors.items()), (
                f"{part} starts from its weights"
            )
        before = {key: value.clone() for key, value in run.state.learner.state_dict().items()}
        run.state.learner.train()
        run.refresh(run.state, run.save, StopSignals())
        batch = next(iter(run.state.stream))
        for group in run.state.optimizer.param_groups:
            group["lr"] = 1e-3
        report = run.step(run.state, batch)
        assert report.finite
        assert math.isfinite(report.scalars()["loss"])
        moved = {key for key, value in run.state.learner.state_dict().items() if not value.equal(before[key])}
        assert moved
        frozen = {part for part, config in recipe.encoders.items() if config.frozen}
        assert not [key for key in moved if key.split(".")[1] in frozen], "a locked tower does not move"
        model = EmbeddingModel(dict(run.state.learner.encoders.items()), run.state.learner.objective.heads())
        aligned = '"pairs"' in json.dumps(values["objective"]) or values["objective"]["kind"] == "joint_mae"
        assert set(model.heads) == (set(recipe.encoders) if aligned else set())
    finally:
        run.state.stream.close()
        launch.close()


def tiny(value: Any, shards: Path, folder: Path, key: str = "") -> Any:
    """The same recipe with all sizes brought down and its data turned to the tiny shards."""
    splits = {"shards": "test", "train_shards": "train"}
    if key in splits:
        return [str(shards / splits[key])]
    if isinstance(value, list):
        return [tiny(item, shards, folder) for item in value]
    if not isinstance(value, dict):
        return value
    small = {name: tiny(item, shards, folder, name) for name, item in value.items()}
    if key != "tokenizer" and ("pairs" in small or small.get("kind") != "clip"):  # the kind of other things too
        small |= SIZES.get(str(small.get("kind")), {})
    small |= {name: str(folder / path) for name, path in small.items() if name == "weights" and isinstance(path, str)}
    if small.get("kind") in ("simclr", "resized_crop", "blocks") and "size" in small:  # a view of a size of its own
        small |= {"size": 32}
    if key == "predictor" and "depth" in small:
        small = {"width": 16, "depth": 1, **({"kind": "conv", "groups": 8} if "groups" in small else {"heads": 1})}
    if small.get("kind") == "inverse_blocks" and "patch_size" in small:  # of few patches
        small |= {"side": 1}
    if "draws" in small:
        small |= {"draws": 2}
    if key == "patches" and "prototypes" in small:
        small |= {"prototypes": 64}
    if key == "schedule":
        small = {name: item for name, item in small.items() if name != "cooldown"}
        small |= {"warmup": "1 steps"}  # of a run of one step
    if "tile" in str(small.get("objective")):
        image = small["modalities"]["image"]  # of three tiles
        image["size"] = 96
        image["views"] = {
            kind: view | ({"size": 96} if "size" in view else {}) for kind, view in image["views"].items()
        }
    if "encoders" in small:
        small |= {"batch_size": 4, "duration": "1 steps", "device": "cpu", "output": str(folder)}
        kept = {name: small["data"][name] for name in ("optional", "synchronized") if name in small["data"]}
        small |= {"log": {"trackers": []}, "data": {"shards": [str(shards / "train")], "workers": 0, **kept}}
    dropped = DROPPED | ({("resnet", "heads"), ("resnet", "output_dim")} if small.get("pool") == "mean" else set())
    return {name: item for name, item in small.items() if (small.get("kind"), name) not in dropped}


DROPPED = {("timm", "size")}
SIZES: Mapping[str, dict[str, Any]] = {
    "image": {"size": 64},
    "array": {"size": 64},
    "vit": {"size": 64, "patch_size": 16, "width": 32, "depth": 3, "heads": 2},
    "resnet": {"size": 64, "layers": [1, 1, 1, 1], "channels": 8, "output_dim": EMBEDDING, "heads": 2},
    "audio_resnet": {"layers": [1, 1], "channels": 8},
    "audio_transformer": {"width": 32, "depth": 2, "heads": 2},
    "waveform_transformer": {"channels": 16, "width": 32, "depth": 2, "heads": 2},
    "series_transformer": {"width": 32, "depth": 2, "heads": 2},
    "series_conv": {"hidden": 8, "depth": 2, "width": 16},
    "video": {"size": 64},
    "frame_video": {"depth": 1, "heads": 2},
    "space_time": {"size": 64, "patch_size": 16, "width": 32, "depth": 2, "heads": 2},
    "timm": {"model": "test_vit"},
    "text_transformer": {"width": 32, "depth": 2, "heads": 2},
    "clip": {"embedding": EMBEDDING},
    "barlow_twins": {"embedding": EMBEDDING},
    "vicreg": {"embedding": EMBEDDING},
    "mlp": {"hidden": 32},
    "moco_v2": {"queue": 20},
    "nnclr": {"queue": 20},
    "lejepa": {"directions": 16},
    "dino": {"prototypes": 64, "frozen_prototypes": "0 steps", "teacher_temperature": 0.04},
    "swav": {"prototypes": 64, "frozen_prototypes": "0 steps"},
    "deepcluster_v2": {"prototypes": 5},
    "self_labels": {"labels": 5},
    "pirl": {"negatives": 20, "jigsaw": {"permutations": 20, "tile": 32}},
    "wav2vec2": {"embedding": 16, "codes": 8},
    "blocks": {"smallest": 2, "patch_size": 16},
    "choice": {"choices": 2},
    "jigsaw": {"permutations": 20, "tile": 32},
    "context": {"tile": 32},
    "kmeans": {"codes": 5, "rows": 64},
    "features": {"layer": 1},
    "latent_prediction": {"layers": 2},
    "layers": {"layers": 2},
    "prototypes": {"prototypes": 64},
    "joint_mae": {"decoder": {"width": 16, "depth": 1, "heads": 1}, "joint_heads": 2},
    "mae": {"decoder": {"width": 16, "depth": 1, "heads": 1}},
}


def provide_weights(values: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Write the weights files that a recipe starts from; returns what each encoder must then hold."""
    targets = values["objective"].get("targets", {})
    if frozen := targets.get("encoder") or targets.get("rows", {}).get("encoder"):
        config = TypeAdapter(TokenEncoderConfig).validate_json(json.dumps({**frozen, "weights": None}))
        safetensors.torch.save_file(config.build().state_dict(), frozen["weights"])
    if not (values.get("weights") or any(encoder.get("weights") for encoder in values["encoders"].values())):
        return {}
    scratch = {
        **values,
        "seed": 1,
        "weights": None,
        "encoders": {name: {k: v for k, v in e.items() if k != "weights"} for name, e in values["encoders"].items()},
    }
    recipe = validate_text(Recipe, json.dumps(scratch), "scratch")
    learner = recipe.build_learner(recipe.build_modalities(), Plan.unknown())
    states = {name: encoder.state_dict() for name, encoder in learner.encoders.items()}
    expected = {}
    for name, encoder in values["encoders"].items():
        if encoder.get("weights"):
            safetensors.torch.save_file(states[name], encoder["weights"])
            expected[name] = states[name]
    if values.get("weights"):
        heads = {name: head.linear.weight for name, head in learner.objective.heads().items()}
        scale = learner.objective.state_dict()["logit_scale.image-text"]
        clip = ClipState(image=states["image"], text=states["text"], heads=heads, logit_scale=scale, logit_bias=None)
        tensors = {key: tensor.detach().contiguous() for key, tensor in to_open_clip(clip).items()}
        safetensors.torch.save_file(tensors, values["weights"])
        expected = states
    return expected
