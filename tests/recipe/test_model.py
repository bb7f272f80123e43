"""The Python face of a model: inputs of all kinds to embeddings, features, cosines and zero-shot classes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import mmssl
from mmssl.core.errors import RecipeError
from mmssl.evaluation.prompts import TEMPLATES, fill_template
from mmssl.recipe import model as module
from mmssl.recipe.load import start_of
from mmssl.recipe.model import Model
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.validate import validate_text
from tests.pipelines.conftest import RECIPE

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 40, 32, 3), dtype=np.uint8)
SOUND = {"kind": "audio", "rate": 8000, "seconds": 0.4, "channels": "mono"}
HEARING = {
    "kind": "audio_transformer",
    "front_end": {"kind": "mel", "rate": 8000, "window": 256, "hop": 80, "mels": 32},
    "seconds": 0.4,
    "patch_size": [8, 10],
    "width": 32,
    "depth": 1,
    "heads": 2,
}


def build(captions: Any = "whole", **objective: Any) -> Model:
    values = json.loads(json.dumps(RECIPE)) | {"data": {"shards": ["none"]}}
    values["modalities"]["text"]["captions"] = captions
    values["modalities"]["audio"], values["encoders"]["audio"] = SOUND, HEARING
    pairs = [["image", "text"], {"modalities": ["audio", "image"], "temperature": 0.5}]
    views = {"image": "crop", "text": "tokens", "audio": "crop"}
    values["objective"] |= {"pairs": pairs, "views": views, "temperature": 0.2, **objective}
    return start_of(validate_text(Recipe, json.dumps(values), "test"))


@pytest.fixture(scope="module")
def model() -> Model:
    return build()


@pytest.mark.parametrize("captions", ["whole", "lines", "list", {"caption": 1.0}])
def test_captions_are_encoded_as_they_are_however_files_hold_them(captions: Any, model: Model) -> None:
    lines = ["a cat", "a cat\nand a dog"]
    made = build(captions).encode(text=lines)["text"]
    torch.testing.assert_close(made, model.encode(text=[line.replace("\n", " ") for line in lines])["text"])
    assert not torch.allclose(made[0], made[1], atol=1e-3)


def test_a_pair_of_a_sound_and_its_rate_is_one_input(model: Model) -> None:
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 3200).astype(np.float32)
    both = model.encode(audio=((wave, 8000), wave))["audio"]
    assert torch.equal(both[:1], both[1:])
    torch.testing.assert_close(model.encode(audio=(wave, 8000))["audio"], both[:1])


def test_inputs_of_all_kinds_are_encoded_alike(model: Model) -> None:
    pixels = PIXELS[0]
    kinds = [pixels, torch.from_numpy(pixels), pixels / 255, Image.fromarray(pixels)]
    made = model.encode(image=kinds)["image"]
    assert made.shape == (4, 16)
    assert torch.equal(made, made[:1].expand(4, -1))
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 3200).astype(np.float32)
    made = model.encode(audio=[wave, torch.from_numpy(wave), wave[None]])["audio"]
    assert torch.equal(made, made[:1].expand(3, -1))


def test_batches_of_pictures_and_other_arrays_are_refused_with_what_to_do(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"
    for value, sentence in (
        (PIXELS, r"image input 0: shape: got shape \[6, 40, 32, 3\], wanted .*; give a batch as a list"),
        ([PIXELS[0], PIXELS[0].transpose(2, 0, 1)], r"image input 1: shape: got shape \[3, 40, 32\], .*permute"),
        ([PIXELS[0], PIXELS[0].astype(np.int32)], r"image input 1: type: got int32 \[40, 32, 3\], wanted .*uint8"),
        ([PIXELS[0], heic], r"image input 1: got a HEIC picture, which needs another package: pip install"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.encode(image=value)


def test_what_comes_out_can_be_trained_on(model: Model) -> None:
    """Neither inference tensors nor parts of a graph."""
    for made in (model.encode(image=PIXELS[0])["image"], model.features(image=PIXELS[0])["image"]):
        assert not made.is_inference()
        assert not made.requires_grad
        probe = nn.Linear(made.shape[1], 2)
        probe(made).sum().backward()
        assert probe.weight.grad is not None


def test_batches_change_nothing(model: Model) -> None:
    pictures = list(PIXELS)
    made = model.encode(image=pictures)["image"]
    torch.testing.assert_close(model.encode(image=pictures, batch_size=4)["image"], made)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(model.encode(image=tuple(pictures), text="a cat")["image"], made)


def test_features_are_those_of_the_encoder_before_the_head(model: Model) -> None:
    pictures = list(PIXELS)
    features = model.features(image=pictures)["image"]
    assert features.shape == (6, 32)
    embedded = F.normalize(model.embedding.heads["image"](features), dim=1)
    torch.testing.assert_close(embedded, model.encode(image=pictures)["image"])


def test_similarity_is_the_cosine_of_two_sides(model: Model) -> None:
    pictures, lines = list(PIXELS), ["a cat", "a dog"]
    a, b = model.encode(image=pictures)["image"], model.encode(text=lines)["text"]
    wanted = F.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(model.similarity(image=pictures, text=lines), wanted)
    torch.testing.assert_close(model.similarity(text=lines, image=pictures), wanted.T)
    torch.testing.assert_close(model.similarity(a, text=lines), wanted)
    torch.testing.assert_close(model.similarity(a, b), wanted)
    for sides in ({"image": pictures}, {"image": pictures, "text": lines, "audio": np.zeros(99, np.float32)}):
        with pytest.raises(ValueError, match=rf"got {len(sides)} sides to compare, wanted two"):
            model.similarity(**sides)
    with pytest.raises(ValueError, match=r"got embeddings \[6, 16\] and \[2, 15\], wanted \[N, E\] and \[M, E\]"):
        model.similarity(a, b[:, :15])


def test_generators_are_read_batch_by_batch(model: Model) -> None:
    read: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for i, pixels in enumerate(PIXELS):
            read.append(i)
            yield pixels
            if i == 3:
                raise KeyError("the source broke")

    wanted = model.encode(image=list(PIXELS), batch_size=4)["image"]
    assert torch.equal(model.encode(image=iter(PIXELS), batch_size=4)["image"], wanted)
    with pytest.raises(KeyError, match="the source broke"):
        model.encode(image=pictures(), batch_size=2)
    assert read == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="image: got an empty generator, wanted one input or more"):
        model.encode(image=iter(()))
    with pytest.raises(ValueError, match=r"image input 1: "):
        model.encode(image=iter([PIXELS[0], "no file.png"]))


def test_the_nearest_of_the_other_side(model: Model) -> None:
    pictures, lines = list(PIXELS), ["a cat", "a dog", "a red bus"]
    cosines = model.similarity(text=lines, image=pictures)
    found = model.nearest(text=lines, image=iter(pictures), top=4)
    assert torch.equal(found.cosines, cosines.sort(descending=True).values[:, :4])
    assert torch.equal(cosines.gather(1, found.indices), found.cosines)
    own = model.encode(text=lines)["text"]
    assert model.nearest(own, text=lines).indices.tolist() == [[0], [1], [2]]
    for top in (0, 7, 1.5):
        with pytest.raises(ValueError, match=f"top: got {top}, wanted a whole number from 1 to 6"):
            model.nearest(text=lines, image=pictures, top=top)  # type: ignore[arg-type]


@pytest.mark.parametrize(("modality", "prompts", "scale"), [(None, "text", 5.0), ("audio", "image", 2.0)])
def test_scales_are_the_models_own(modality: str | None, prompts: str, scale: float, model: Model) -> None:
    assert model._paired(modality, prompts) == (modality or "image", pytest.approx(scale))


def test_classes_are_a_softmax_at_the_temperature_of_training(model: Model) -> None:
    names = ["cat", "dog", "red bus"]

    def prompts(name: str) -> Tensor:
        rows = model.encode(text=[fill_template(template, name) for template in TEMPLATES["simple"]])["text"]
        return F.normalize(rows.mean(0), dim=0)

    rows, classes = model.encode(image=list(PIXELS))["image"], torch.stack([prompts(name) for name in names])
    found = model.classify(list(PIXELS), names)
    torch.testing.assert_close(found.probabilities, (5.0 * rows @ classes.T).softmax(1))
    assert found.labels == [names[k] for k in (rows @ classes.T).argmax(1).tolist()]
    plain = model.classify(PIXELS[0], names, templates="plain")
    torch.testing.assert_close(plain.probabilities, model.classify(PIXELS[0], names, templates=["{}"]).probabilities)
    assert not torch.allclose(plain.probabilities, found.probabilities[:1], atol=1e-4)


def test_classes_that_are_refused(model: Model) -> None:
    for arguments, sentence in (
        ({"names": ["cat"]}, "got 1 class names, wanted at least two"),
        ({"names": ["cat", "Cat"]}, r"names\[1\]: got the class name 'Cat' again"),
        (
            {"names": ["cat", "dog"], "templates": "simpel"},
            r"templates: got 'simpel', wanted sentences with \{\}, or one of",
        ),
        ({"names": ["cat", "dog"], "templates": ["a photo"]}, r"templates\[0\]: 'a photo'"),
        ({"names": ["cat", "dog"], "modality": "audio"}, "modality: got 'audio', wanted one .* match 'text': image"),
        ({"names": ["cat", "dog"], "prompts": "image"}, "modality: got None, wanted one .* match 'image': text, audio"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.classify(PIXELS[0], **arguments)  # type: ignore[arg-type]


def test_a_model_shows_what_it_is(model: Model) -> None:
    lines = repr(model).splitlines()
    assert lines[0] == "Model of an untrained recipe on cpu"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["image", "text", "audio"]
    count = sum(parameter.numel() for parameter in model.embedding.encoders["text"].parameters()) / 1e6
    assert lines[2] == f"  text: TextTransformer, {count:.2f} M parameters, features [D = 16], embeddings [E = 16]"


def test_a_model_moves(model: Model) -> None:
    other = build()
    assert other.to("meta") is other
    assert {parameter.device.type for parameter in other.embedding.parameters()} == {"meta"}


def test_errors_name_modality_and_position(model: Model) -> None:
    for inputs, sentence in (
        ({"image": [PIXELS[0], PIXELS[0].T]}, r"image input 1: shape: got shape \[3, 32, 40\], wanted"),
        ({"image": "missing.jpg"}, r"image input 0: missing\.jpg: it does not exist"),
        ({"text": []}, "text: got an empty list, wanted one input or more"),
        ({"video": "a.mp4"}, "no encoder for 'video'; this model has image, text, audio"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.encode(**inputs)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.encode(), "got no inputs, wanted modality=inputs, one of image, text, audio"),
        (lambda m: m.encode(text=["a"], batch_size=0), "batch_size: got 0, wanted a whole number from 1"),
        (lambda m: m.features(text=["a"], batch_size=1.5), "batch_size: got 1.5, wanted a whole number from 1"),
        (lambda m: m.similarity(["a.jpg"], text=["a"]), "got a list to compare, wanted a tensor"),
        (lambda m: m.similarity(np.ones((1, 4)), text=["a"]), "got a ndarray to compare, wanted a tensor"),
        (lambda m: m.similarity(text=["a"]), "got 1 sides to compare, wanted two"),
        (lambda m: m.classify(list(PIXELS), "cat"), "names: got the text 'cat', wanted a list"),
        (
            lambda m: m.classify(["a"], ["a", "b"], modality="audio", prompts="image"),
            "prompts: got 'image', wanted a modality of",
        ),
    ],
)
def test_calls_that_cannot_be_meant(call: Any, said: str, model: Model) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        call(model)


def test_similarity_is_a_cosine_whatever_the_norm(model: Model) -> None:
    a, b = model.encode(text=["a", "b"])["text"], model.encode(text=["c"])["text"]
    torch.testing.assert_close(model.similarity(100 * a, 0.01 * b), a @ b.T)


def test_class_names_may_come_from_a_generator(model: Model) -> None:
    assert model.classify(list(PIXELS), (name for name in ("x", "y"))).names == ("x", "y")


def test_a_checkpoint_is_chosen_by_best_or_last(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="which: got 'bst', wanted 'best' or 'last'"):
        mmssl.load(tmp_path, which="bst")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="got 'seed=1' for a trained model"):
        mmssl.load(tmp_path, overrides="seed=1")


@pytest.mark.parametrize(
    ("progress", "terminal", "long", "shown"),
    [
        (None, True, True, True),
        (None, True, False, False),
        (None, False, True, False),
        (True, False, False, True),
        (False, True, True, False),
    ],
)
def test_progress_is_shown_on_a_terminal_for_many_inputs(
    progress: bool | None, terminal: bool, long: bool, shown: bool, model: Model, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(module, "LONG", 2 if long else 6)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    made = model.encode(image=list(PIXELS), progress=progress, batch_size=2)["image"]
    assert ("image, 6 inputs" in capsys.readouterr().err) == shown
    torch.testing.assert_close(made, model.encode(image=list(PIXELS))["image"])


@pytest.mark.parametrize("key", ["encoders.image.width", "objective.embedding", "data.shards", "seed", "modalities"])
def test_what_was_trained_cannot_be_changed(key: str) -> None:
    sentence = rf"got '{key}=8' for a trained model; wanted a key below modalities\. or evaluators\."
    with pytest.raises(RecipeError, match=sentence):
        mmssl.load("nowhere", overrides=[f"{key}=8"])


def test_the_public_face_is_listed() -> None:
    assert dir(mmssl) == ["Model", "Recipe", "__version__", "find_recipe", "load"]
    for name in dir(mmssl):
        assert getattr(mmssl, name) is not None


def test_types_are_announced_to_type_checkers() -> None:
    assert (Path(mmssl.__file__).parent / "py.typed").is_file()
