"""A model as mteb's encoder: what goes in and out, without mteb itself; the scores stand in test_mteb_tasks.py."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import Modality
from mmssl.evaluation.mteb_encoder import MtebEncoder, as_input
from mmssl.evaluation.mteb_tasks import MtebConfig, mean_scores, score_rows, split_names, task_modalities
from tests.evaluation.world import configured, model

WIDTH = 6


def modalities() -> dict[str, Modality]:
    tokenizer = {"kind": "clip", "context_length": 8}
    return {
        "image": configured(ImageConfig, size=8).build("image"),
        "text": configured(TextConfig, tokenizer=tokenizer).build("text"),
    }


def told(*names: str) -> Any:
    """A task's metadata, as far as the encoder asks."""
    return SimpleNamespace(name="Task", modalities=list(names))


def read(x: Tensor) -> Tensor:
    return torch.randn(49408, WIDTH, generator=torch.Generator().manual_seed(0))[x].sum(1)


def seen(x: Tensor) -> Tensor:
    return x.float().mean((2, 3)).repeat(1, 2)


def encoder(to: EmbeddingModel | None = None) -> MtebEncoder:
    return MtebEncoder(to or model(WIDTH, text=read, image=seen), modalities(), batch_size=2)


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (value, 10, 20))


def test_batches_become_rows_in_their_order() -> None:
    texts = ["a ball", "a red cube", "nothing"]
    rows = encoder().encode([{"text": texts[:2]}, {"text": texts[2:], "id": ["3"]}], task_metadata=told("text"))
    text = modalities()["text"]
    views = torch.stack([text.view("eval")(text.from_input(one), {})[0] for one in texts])
    assert rows.dtype == np.float32
    assert torch.allclose(torch.from_numpy(rows), F.normalize(read(views), dim=1))


def test_several_modalities_are_summed() -> None:
    batch = {"text": ["a ball", "a cube"], "image": [grey(0), grey(200)]}
    both = encoder().encode([batch], task_metadata=told("text", "image"))
    alone = [encoder().encode([{name: batch[name]}], task_metadata=told("text", "image")) for name in ("text", "image")]
    assert np.allclose(both, alone[0] + alone[1], atol=1e-6)


def test_without_a_shared_space_features_are_taken() -> None:
    blind = EmbeddingModel({"image": model(WIDTH, image=seen).encoders["image"]}, {})
    rows = encoder(blind).encode([{"image": [grey(200)]}], task_metadata=told("image"))
    assert np.linalg.norm(rows) > 2
    with pytest.raises(DataError, match="Task: got inputs with text, wanted some of image"):
        encoder(blind).encode([{"text": ["a"]}], task_metadata=told("text"))


def test_inputs_and_embeddings_that_cannot_be_used_are_named() -> None:
    with pytest.raises(DataError, match="Task: image input"):
        encoder().encode([{"image": ["no picture"]}], task_metadata=told("image"))
    broken = model(WIDTH, image=lambda x: torch.full((len(x), WIDTH), torch.nan))
    with pytest.raises(NumericError, match="Task: an embedding is not finite"):
        encoder(broken).encode([{"image": [grey(1)]}], task_metadata=told("image"))


def test_similarities_are_cosines() -> None:
    a, b = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    cosines = F.cosine_similarity(a[:, None], b[None], dim=2)
    assert torch.allclose(encoder().similarity(a.numpy(), b), cosines, atol=1e-6)
    assert torch.allclose(encoder().similarity_pairwise(a, b), cosines.diagonal(), atol=1e-6)


def test_sounds_and_videos_of_mteb_become_inputs() -> None:
    wave, rate = as_input("audio", {"array": [0.0, 0.5], "sampling_rate": 8000})
    assert (wave.dtype, wave.tolist(), rate) == (np.float32, [0.0, 0.5], 8000)
    samples = SimpleNamespace(data=torch.zeros(2, 4), sample_rate=16000)
    wave, rate = as_input("audio", SimpleNamespace(get_all_samples=lambda: samples))
    assert (wave.shape, rate) == ((2, 4), 16000)
    frames, rate = as_input("video", torch.zeros(5, 3, 8, 6, dtype=torch.uint8))
    assert (frames.shape, rate) == ((5, 8, 6, 3), 1.0)


def test_names_and_scores() -> None:
    assert split_names("STS12, MTEB(eng, v2),CIFAR10") == ("STS12", "MTEB(eng, v2)", "CIFAR10")
    single = SimpleNamespace(metadata=SimpleNamespace(type="STS", modalities=["text"]))
    joined = SimpleNamespace(metadata=SimpleNamespace(tasks=[single, single]))
    assert task_modalities(joined) == {"text"}
    entries = [
        {"main_score": 0.5, "hf_subset": "a", "v": 1, "languages": ["x"], "each": [1, 2]},
        {"main_score": 1, "hf_subset": "b", "v": float("nan")},
    ]
    rows = [*score_rows({"test": entries}, "Sim", single)]
    assert rows[0] == ("Sim", "STS", "test", "a", "main_score", 0.5)
    assert mean_scores(rows) == {"Sim": 0.75, "Sim_v": None}


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(RecipeError, match=r"need the extra `mteb`: pip install 'mmssl\[mteb\]'"):
        configured(MtebConfig, tasks=["STS12"]).build(modalities()).open()
    with pytest.raises(ValueError, match="wanted none: mteb's tasks bring their data"):
        configured(MtebConfig, tasks=["STS12"], shards=["a.tar"])
    assert configured(MtebConfig, tasks=["STS12"], shards=[]).shards == ()
