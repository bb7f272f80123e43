"""Models of other libraries as recipes and run folders: from a file, a model folder, or the local cache of a hub."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmssl.core.errors import CheckpointError, DataError, RecipeError, os_words
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders.adapters.hubs import local_copy, tag_settings
from mmssl.encoders.adapters.imagebind_names import is_imagebind
from mmssl.encoders.weight_files import read_state, weights_in
from mmssl.encoders.weights import ADVICE as WEIGHTS_ADVICE
from mmssl.interop.describe_imagebind import describe_imagebind
from mmssl.interop.describe_open_clip import CONFIG, describe_open_clip, named_model, usual_preprocessing
from mmssl.interop.describe_transformers import describe_laion_clap, describe_transformers
from mmssl.interop.described import Described, read_json
from mmssl.recipe.average import write_model
from mmssl.recipe.portable import with_tokenizers
from mmssl.recipe.recipe import Recipe, load_recipe
from mmssl.recipe.start import ADVICE as START_ADVICE
from mmssl.recipe.start import is_model_folder
from mmssl.recipe.validate import HERE, validate_text
from mmssl.training.checkpoints.manifest import MANIFEST
from mmssl.training.checkpoints.read import FOLDER, folder_name

WEIGHTS = "model.safetensors"
"""The weights in a checkpoint folder of mmssl, beside its manifest."""
_ADVICE = (
    "The settings that were found belong to another model than these weights: give the right open_clip name by --arch (arch), or "
    "put the open_clip_config.json or config.json that was saved with the weights beside them"
)
_UNKNOWN_STATISTICS = (
    "pictures are normalised with the statistics of OpenAI's CLIP: weights of this model differ in theirs "
    "(encoders.image.mean and std)"
)
# How an imported model is fine-tuned, unless the recipe is changed: as `image_text/finetune_vit_b_32`.
_TRAINING: Mapping[str, Any] = {
    "seed": 0,
    "duration": "5 epochs",
    "batch_size": 256,
    "data": {"shards": ["shards/train"], "workers": 8, "on_error": "substitute", "max_failures": 0.01},
    "optimizer": {
        "kind": "adamw", "lr": 1e-5, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1, "layer_decay": 0.75,
    },
    "schedule": {"kind": "cosine", "warmup": "5 percent"},
    "precision": "bf16",
    "clip_norm": 1.0,
    "ema": {"decay": 0.999, "warmup": True},
    "save": {"every": "20 percent"},
    "log": {"every": "20 steps", "trackers": ["tensorboard"]},
}  # fmt: skip


def is_source(path: Path) -> bool:
    """Whether a path means a model of another library: a hub's or a tag's name, a model folder, or a file of weights."""
    if ":" in str(path) and not path.exists():
        return True
    if path.is_dir():
        return is_model_folder(path) or (path / CONFIG).exists()
    return path.is_file() and path.suffix not in (".yaml", ".yml")


def described_folder(path: Path, arch: str | None = None) -> Path:
    """The folder of a file of weights, where the files beside it say what model it is; every other path as it is.

    Args:
        path: what the user names.
        arch: open_clip's name of the model, if it is given: the file is then taken alone.

    Raises:
        CheckpointError: it is a file of a checkpoint of mmssl, whose folder means other weights.
    """
    folder = path.parent
    if arch is not None or not path.is_file() or path.suffix in (".yaml", ".yml"):
        return path
    if (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_file():
        averaged = (folder / "ema.safetensors").is_file()
        if path.name == WEIGHTS and not averaged:
            return folder
        hint = ", with --no-ema (ema=False) for the weights that are not averaged" if averaged else ""
        raise CheckpointError(f"got {str(path)!r}, one file of the checkpoint {str(folder)!r}: give the folder{hint}")
    known = (folder / CONFIG).is_file() or (folder / "config.json").is_file()
    return folder if known and is_model_folder(folder) and weights_in(folder).name == path.name else path


def describe_model(source: Path, arch: str | None = None, tokenizer: Path | None = None) -> Described:
    """Find out what a model is.

    Args:
        source: a file, a model folder of open_clip or transformers, `hf-hub:ORG/NAME`, or open_clip's `MODEL:TAG`.
        arch: open_clip's name of the model, for files that do not say it.
        tokenizer: folder of the tokenizer, where it does not lie beside the weights.

    Raises:
        CheckpointError: it cannot be found, read, or built here; says why. DataError: there is no such folder of a tokenizer.
    """
    if tokenizer is not None and not tokenizer.is_dir():
        raise DataError(f"--tokenizer: got {str(tokenizer)!r}, wanted the folder of a tokenizer of transformers")
    tag = tag_settings(source)
    path = described_folder(local_copy(source), arch if tag is None else tag[0])
    if tag is not None:
        name, preprocess = tag
        model = named_model(arch or name) | ({"quick_gelu": True} if preprocess.get("quick_gelu") else {})
        return describe_open_clip(path, model, preprocess, tokenizer)
    if path.is_dir() and not arch:
        if (path / CONFIG).is_file():
            values = read_json(path / CONFIG)
            if not isinstance(values.get("model_cfg"), dict):
                raise CheckpointError(f"{str(path / CONFIG)!r} has no model_cfg, wanted a model of open_clip")
            return describe_open_clip(path, values["model_cfg"], values.get("preprocess_cfg") or {}, tokenizer)
        if (path / "config.json").is_file():
            return describe_transformers(path, tokenizer)
    if (path / FOLDER).is_dir() or (path / MANIFEST).exists():
        raise CheckpointError(f"{str(path)!r} is a run of mmssl already: use it as it is")
    state = read_state(path)
    if any(name.startswith("audio_branch.") for name in state):
        return describe_laion_clap(path, state, tokenizer)
    if is_imagebind(state):
        return describe_imagebind(path, state)
    if arch is None:
        raise CheckpointError(
            f"{str(source)!r} does not say which model it is, wanted open_clip's name of it: mmssl import FILE --arch ViT-B-32 "
            f"--out DIR, or mmssl.load(FILE, arch=...); or a folder with {CONFIG} or config.json"
        )
    preprocess = usual_preprocessing(arch)
    described = describe_open_clip(path, named_model(arch), preprocess, tokenizer)
    return described if preprocess else replace(described, notes=(_UNKNOWN_STATISTICS,))


def recipe_of(model: Described, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The complete recipe of a described model: it starts from its weights, and fine-tunes all of it.

    Raises:
        RecipeError: a part does not fit; says which.
    """
    parts = {"modalities": model.modalities, "encoders": model.encoders, "objective": model.objective}
    document = {"name": name, "weights": str(model.weights.absolute()), **_TRAINING, **parts}
    return validate_text(Recipe, json.dumps(document), f"recipe of {model.weights}", overrides)


def write_imported_run(model: Described, folder: Path) -> tuple[Recipe, Learner]:
    """Write a run folder of a described model: a checkpoint of step 0, its recipe, and its tokenizer.

    Args:
        model: from `describe_model`.
        folder: must not exist, or be empty.

    Returns:
        The recipe, which starts from the folder, and the model as it was loaded.

    Raises:
        DataError: the folder is in use, or cannot be written.
        CheckpointError, RecipeError: the tensors do not fit the model.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"--out: {str(folder)!r} holds files already: choose another folder, or remove it")
    name = "".join(letter if letter.isalnum() else "_" for letter in folder.absolute().name).strip("_") or "imported"
    recipe = recipe_of(model, f"{name}_finetuned")
    with advising():
        learner = recipe.build_learner(recipe.build_modalities(), Plan.unknown())
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        checkpoint = Path(FOLDER, folder_name(0))
        write_model(temporary / checkpoint, recipe, learner, {"step": 0, "imported": str(model.weights)})
        moved = with_tokenizers(recipe, temporary).model_copy(update={"weights": Path(HERE)})
        (temporary / "recipe.yaml").write_text(_HEADER.format(folder=folder) + moved.to_yaml(), "utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise DataError(f"cannot write {str(folder)!r}: {os_words(error)}; choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_recipe(folder / "recipe.yaml"), learner


@contextmanager
def advising() -> Iterator[None]:
    """Advise what mends an import where weights do not fit: its recipe follows from the files, and nobody wrote it."""
    try:
        yield
    except CheckpointError as error:
        said = str(error)
        for advice in (WEIGHTS_ADVICE, START_ADVICE):
            said = said.replace(advice, _ADVICE)
        raise CheckpointError(said) from error


@contextmanager
def as_run(path: Path, arch: str | None = None, tokenizer: Path | None = None) -> Iterator[Path]:
    """The run folder of a path: itself, or, of another library's model, a temporary one for as long as the context lasts.

    Args:
        path, arch, tokenizer: see `describe_model`.
    """
    path = described_folder(path, arch)
    if not is_source(path):
        refuse_description(path, arch, tokenizer)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_imported_run(describe_model(path, arch, tokenizer), run)
        yield run


def refuse_description(path: Path, arch: str | None, tokenizer: Path | str | None) -> None:
    """Refuse a description of what describes itself: a run or a recipe.

    Raises:
        RecipeError: there is one.
    """
    for name, given in (("arch", arch), ("tokenizer", tokenizer)):
        if given is not None:
            raise RecipeError(
                f"{name}: got {str(given)!r} for {str(path)!r}, which says its own; leave it out: other libraries' models need it"
            )


_HEADER = """# Fine-tune an imported model:
#
#   mmssl pretrain {folder}/recipe.yaml data.shards='["shards/train"]'
#
"""
