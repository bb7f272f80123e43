"""Fine-tuning: a copy learns, the model stays bit-equal, the epoch is chosen on validation samples, layers have their rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel, Encoder, Features
from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.core.torch_seeding import seeded
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modality import Modality
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.evaluation.labelled.base import warm_cosine
from mmssl.evaluation.labelled.fine_tuning import FineTuning, FineTuningConfig, Tuned
from mmssl.reporting.results import Results
from tests.evaluation.world import COLOURS, Formula, colour_sample, configured, modalities, png, write_shard


def vit(**values: Any) -> Encoder:
    small = {"size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2, **values}
    with seeded(0, "vit"):
        encoder: Encoder = configured(VisionTransformerConfig, **small).build()
    return encoder


class Deep(Encoder):
    """uint8 [B, 3, H, W] -> the mean colour through linear layers with batch norm and dropout: three groups."""

    width = 8

    def __init__(self) -> None:
        super().__init__()
        with seeded(0, "deep"):
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 8)
        self.norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.1)

    def prepare(self, x: Tensor) -> Tensor:
        return x.float() / 127.5 - 1

    def forward(self, x: Tensor, **_: Any) -> Features:
        return Features(self.last(self.dropout(self.norm(self.first(self.prepare(x).mean((2, 3)))).relu())))

    def layers(self) -> list[list[nn.Parameter]]:
        return [[*self.first.parameters()], [*self.norm.parameters()], [*self.last.parameters()]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Shards of the eight colours; every fifth sample has no label."""
    folder = tmp_path_factory.mktemp("shards")
    starts = {"train_shards": 0, "validation_shards": 100, "shards": 200}
    return {
        name: [
            str(write_shard(folder / f"{name}.tar", [colour_sample(start + i, label=i % 5 != 4) for i in range(40)]))
        ]
        for name, start in starts.items()
    }


def config(data: dict[str, list[str]], **values: Any) -> FineTuningConfig:
    usual = {"modality": "picture", "lr": 0.02, "epochs": 12, "training_batch": 8, "batch_size": 16}
    return configured(FineTuningConfig, **{**data, **usual, **values})


def measured(settings: FineTuningConfig, encoder: nn.Module) -> tuple[dict[str, Any], FineTuning]:
    model = EmbeddingModel({"picture": encoder}, {})
    with settings.build(modalities()) as evaluator:
        return dict(evaluator.evaluate(model)), evaluator


def test_a_copy_learns_and_the_model_stays_as_it_was(data: dict[str, list[str]], tmp_path: Path) -> None:
    encoder = Deep().requires_grad_(False)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(3)
    states = torch.get_rng_state()
    settings = config(data, keep_weights=True)
    scores, evaluator = measured(settings, encoder)
    assert torch.equal(states, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert encoder.training
    assert scores["acc1"] == scores["validation_acc1"] == 1
    assert (scores["n"], scores["n_train"], scores["n_validation"]) == (32, 32, 32)
    assert (scores["n_excluded"], scores["n_train_excluded"], scores["chance"]) == (8, 8, 1 / 8)
    Results(tmp_path, "here", "digest").write("tuned", settings, evaluator, {}, scores)
    saved = load_file(tmp_path / "tuned.safetensors")
    assert saved.pop("classes").tolist() == list(range(8))
    again = Tuned(Deep(), 8)
    again.load_state_dict(saved)
    assert again.eval()(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)).argmax(1).tolist() == [7, 7], "white"
    assert torch.equal(saved["encoder.norm.running_mean"], before["norm.running_mean"]), "statistics are kept"
    assert set(measured(config(data, epochs=1), encoder)[1].fitted) == {
        "classes", "head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias",
    }  # fmt: skip


def test_a_transformer_learns_from_a_view_of_the_recipe(data: dict[str, list[str]]) -> None:
    scores, _ = measured(config(data, view="crop", lr=0.01), vit())
    assert scores["acc1"] > 0.9


def test_it_is_a_function_of_its_seed(data: dict[str, list[str]]) -> None:
    (one, first), (two, second), (_, third) = (
        measured(config(data, epochs=2, keep_weights=True, seed=seed), Deep()) for seed in (0, 0, 1)
    )
    assert one == two
    assert all(torch.equal(first.fitted[name], value) for name, value in second.fitted.items())
    assert not torch.equal(first.fitted["head.1.weight"], third.fitted["head.1.weight"])


def test_a_step_is_the_slow_one(data: dict[str, list[str]]) -> None:
    """One batch of all samples, one epoch: against AdamW by hand (its first step is the sign of the gradient, nearly)."""
    settings = config(
        data,
        epochs=1,
        training_batch=100,
        lr=0.01,
        weight_decay=0.1,
        layer_decay=0.5,
        label_smoothing=0.2,
        keep_weights=True,
    )
    encoder = Deep()
    encoder.dropout.p = 0.0
    _, evaluator = measured(settings, encoder)
    with seeded(0, "fine_tuning", "head"):
        slow = Tuned(encoder, 8).train()
    labels = torch.tensor([i % 8 for i in range(40) if i % 5 != 4])
    pictures = modalities()["picture"]
    pixels = torch.stack(
        [pictures.view("eval")(pictures.decode(colour_sample(i)[1]["png"], "png"), {}) for i in range(40) if i % 5 != 4]
    )
    logs = slow(pixels).log_softmax(1)
    targets = F.one_hot(labels, 8) * 0.8 + 0.2 / 8
    (-(targets * logs).sum(1).mean()).backward()
    rates = {"encoder.first": 0.25, "encoder.norm": 0.5, "encoder.last": 1.0, "head.0": 1.0, "head.1": 1.0}
    for name, parameter in slow.named_parameters():
        rate = 0.01 * warm_cosine(0, 1) * rates[name.rpartition(".")[0]]
        decay = 0.1 if parameter.ndim > 1 else 0.0
        assert parameter.grad is not None
        step = parameter.grad / (parameter.grad.abs() + 1e-8)
        expected = parameter * (1 - rate * decay) - rate * step
        firm = parameter.grad.abs() > 1e-5  # elsewhere rounding decides the sign
        assert torch.allclose(evaluator.fitted[name][firm], expected[firm], atol=1e-5), name


def test_a_collapsed_model_scores_chance(data: dict[str, list[str]]) -> None:
    constant = Formula(lambda x: torch.ones(len(x), 4), 4)
    scores, _ = measured(config(data, epochs=2), constant)
    assert scores["acc1"] == 1 / 8
    assert scores["best_epoch"] == 1, "the first of equals"


def test_what_cannot_be_learned_scores_chance(data: dict[str, list[str]], tmp_path: Path) -> None:
    """Test labels that have nothing to do with the pictures."""
    shuffled = [colour_sample(i)[1] | {"cls": str(i // 8 % 8).encode()} for i in range(64)]
    test = [str(write_shard(tmp_path / "test.tar", [(f"{i:03d}", fields) for i, fields in enumerate(shuffled)]))]
    scores, _ = measured(config({**data, "shards": test}), Deep())
    assert scores["validation_acc1"] == 1
    assert scores["acc1"] == 1 / 8, "every label with every colour once"


def test_corruptions_are_measured_with_the_tuned_copy(data: dict[str, list[str]]) -> None:
    scores, evaluator = measured(config(data, corruptions=["contrast"], average={"picture": "flip"}), Deep())
    assert scores["acc1"] == scores["acc1_kept"] == scores["acc1_contrast_3"] == 1
    assert evaluator.tables["corruptions"].columns["acc1_n"] == [32] * 5


def test_what_does_not_fit_is_said(data: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"validation_shards: got .*, which is one of `train_shards`"):
        measured(config({**data, "validation_shards": data["train_shards"]}), Deep())
    with pytest.raises(ValueError, match="has no view 'crops', did you mean 'crop'"):
        measured(config(data, view="crops"), Deep())
    one = [("a", {"png": png(COLOURS["red"]), "cls": b"3"}), ("b", {"png": png(COLOURS["red"]), "cls": b"3"})]
    with pytest.raises(DataError, match="the training samples have 1 class"):
        measured(config({**data, "train_shards": [str(write_shard(tmp_path / "one.tar", one))]}), Deep())
    with pytest.raises(NumericError, match="the loss is not finite in epoch 1; lower `lr`"):
        measured(config(data, lr=1e30), Deep())
    device: dict[str, Modality] = {
        **modalities(),
        "picture": configured(ImageConfig, size=8, views={"crop": {"kind": "simclr", "where": "device"}}).build(
            "picture"
        ),
    }
    with pytest.raises(RecipeError, match="view: got 'crop', which the training device finishes"):
        config(data, view="crop").build(device)
