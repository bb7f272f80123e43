"""The hash of a model changes with all that its answers depend on, and with nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.tokenizers import HfTokenizerConfig
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.transformers import HfTextConfig
from mmssl.evaluation.calibration import Calibration
from mmssl.recipe.calibrations import other_models, write_calibration
from mmssl.recipe.digest import model_digest
from mmssl.recipe.load import start_of
from mmssl.recipe.model import Model
from mmssl.recipe.portable import with_tokenizers
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import HERE, validate_text
from tests.pipelines.conftest import RECIPE


def build(*overrides: str) -> Model:
    text = json.dumps(RECIPE | {"data": {"shards": ["none"]}})
    return start_of(validate_text(Recipe, text, "test", overrides))


@pytest.fixture(scope="module")
def plain() -> Model:
    return build()


@pytest.mark.parametrize(
    "change",
    [
        "objective.temperature=0.06",
        "objective.loss=sigmoid",
        "encoders.image.mean=[0.4, 0.5, 0.5]",
        "encoders.image.std=[0.3, 0.3, 0.2]",
        "encoders.text.activation=quick_gelu",
        "modalities.image.fit=squash",
        "modalities.text.captions=lines",
        "seed=1",
    ],
)
def test_what_changes_answers(plain: Model, change: str) -> None:
    more = ["objective.bias=-10"] if "sigmoid" in change else []
    assert build(change, *more).digest() != plain.digest()


def test_biases_count_too() -> None:
    assert (
        build("objective.loss=sigmoid", "objective.bias=-10").digest()
        != build("objective.loss=sigmoid", "objective.bias=-9").digest()
    )


@pytest.mark.parametrize(
    "change",
    [
        "encoders.image.frozen=true",
        "encoders.text.checkpointing=true",
        "batch_size=8",
        "optimizer.lr=1e-4",
        "name=other",
    ],
)
def test_what_changes_none(plain: Model, change: str) -> None:
    assert build(change).digest() == plain.digest()


def test_each_tensor_counts(plain: Model) -> None:
    known, model = plain.digest(), build()
    assert model.digest() == known
    tensors: dict[str, Any] = {**dict(model.embedding.named_parameters()), **dict(model.embedding.named_buffers())}
    assert {"encoders.image.pixels.mean", "encoders.image.pixels.std"} <= tensors.keys()
    for name, tensor in tensors.items():
        with torch.no_grad():
            before = tensor.clone()
            tensor.view(-1)[-1] += 1
            assert model.digest() != known, name
            tensor.copy_(before)
    assert model.digest() == known


def test_calibrations_of_other_models_are_said_to_be_there(tmp_path: Path) -> None:
    assert other_models(tmp_path, "new") == other_models(None, "new") == ""
    write_calibration(tmp_path, "old", ("image", "text"), Calibration(0.5, (0.0, 1.0), (0.1, 0.9)))
    assert other_models(tmp_path, "old") == ""
    assert other_models(tmp_path, "new") == (
        ", and calibration.json has some of other weights or settings, or by an earlier version"
    )


def words(folder: Path, *more: str) -> None:
    """A tokenizer of whole words beside the weights of a model, as transformers saves both."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(("[PAD]", "[UNK]", *more))}, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 8}')
    (folder / "model.safetensors").write_bytes(b"weights")


def reading(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the tokenizer in a folder."""
    text = TextConfig(tokenizer=HfTokenizerConfig(path=folder, context_length=16))
    return recipe.model_copy(update={"modalities": {**recipe.modalities, "text": text}})


def test_a_tokenizer_counts_by_its_files_wherever_they_lie(plain: Model, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return model_digest(reading(plain.recipe, folder), plain.embedding, {})

    first, other = tmp_path / "first", tmp_path / "other"
    words(first, "cat")
    known = digest(first)
    assert known != plain.digest()
    shutil.copytree(first, tmp_path / "moved/here")
    assert digest(tmp_path / "moved/here") == known
    (first / "config.json").write_text('{"model_type": "bert", "hidden_size": 9}')
    (first / "model.safetensors").write_bytes(b"other weights")
    assert digest(first) == known
    words(other, "dog")
    assert digest(other) != known
    (first / "config.json").write_text('{"model_type": "siglip2"}')
    assert digest(first) != known


def test_an_exported_tokenizer_is_the_same(plain: Model, tmp_path: Path) -> None:
    words(tmp_path / "words", "cat")
    recipe = reading(plain.recipe, tmp_path / "words")
    written = with_tokenizers(recipe, tmp_path / "exported").to_yaml()
    exported = validate_text(Recipe, written.replace(HERE, str(tmp_path / "exported")), "test")
    assert exported.modalities["text"] != recipe.modalities["text"]
    digests = {model_digest(one, plain.embedding, {}) for one in (recipe, exported)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"pool": "mean", "config": "FOLDER/config.json"}),
        ("open_clip_config.json", {"tower": "text", "model": "local-dir:FOLDER"}),
    ],
)
def test_files_of_encoders_count_by_what_they_hold(
    plain: Model, tmp_path: Path, file: str, settings: dict[str, str]
) -> None:
    def digest(name: str, content: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / file).write_text(content)
        kind = HfTextConfig if file == "config.json" else OpenClipConfig
        said = json.dumps(settings).replace("FOLDER", str(folder))
        encoder = kind.model_validate_json(said)
        encoders = {**plain.recipe.encoders, "text": encoder}
        return model_digest(plain.recipe.model_copy(update={"encoders": encoders}), plain.embedding, {})

    assert digest("one", "{}") == digest("two", "{}") != digest("three", '{"more": 1}')
