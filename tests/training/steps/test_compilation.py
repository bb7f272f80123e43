"""Compiled encoders: the same numbers, few graphs however long the texts are, and a word about breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mmssl.core.batch import Batch
from mmssl.core.compat import is_compiled
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.encoders import text_transformer
from mmssl.encoders.text_transformer import TextTransformerConfig, trim_padding
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.objectives.byol import ByolConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.training.run import TrainingConfig
from mmssl.training.runtime.launch import Launch
from mmssl.training.steps.compilation import compile_encoders, eagerly, repeated_blocks, uncompile_encoders
from mmssl.training.steps.plain import PlainStepConfig
from tests.training.toys import BASE, Tower, make_learner

SIZE: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def clip(**changes: Any) -> Learner:
    """Two small transformers."""
    torch.manual_seed(0)
    encoders = {
        "image": VisionTransformerConfig(size=16, patch_size=8, **SIZE).build(),
        "text": TextTransformerConfig(vocab_size=40, context_length=45, **(SIZE | changes)).build(),
    }
    views = {"image": "crop", "text": "tokens"}
    config = ClipConfig(pairs=(("image", "text"),), views=views, embedding=8, temperature=0.07)
    return Learner(encoders, config.build(encoders, Plan.unknown())).double()


def batch(longest: int, size: int = 4) -> Batch:
    """Texts of up to `longest` tokens, trimmed as a stream does it."""
    random = torch.Generator().manual_seed(longest)
    ids = torch.randint(1, 39, (size, 45), generator=random)
    for row in range(size):
        end = max(1, longest - 1 - 2 * row)
        ids[row, end] = 39
        ids[row, end + 1 :] = 0
    pictures = torch.randint(0, 256, (size, 3, 16, 16), generator=random, dtype=torch.uint8)
    return Batch({"image": {"crop0": pictures}, "text": {"tokens0": trim_padding(ids)}}, torch.arange(size))


class Counting:
    """A backend that counts graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return graph.forward


def gradients(learner: Learner, data: Batch) -> dict[str, Tensor]:
    launch = Launch(device="cpu")
    output, _ = PlainStepConfig().build(learner, learner, launch, 0, None).gradients(data, 0, 1)
    found = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    return {"loss": output.total, **found}


def test_compiled_gives_the_same_gradients_and_few_graphs(capsys: pytest.CaptureFixture[str]) -> None:
    learner, plain, backend = clip(), clip(), Counting()
    names = list(learner.state_dict())
    compile_encoders(learner, "default", backend)
    assert list(learner.state_dict()) == names
    counts = []
    for longest in (9, 20, 30, 44, 14, 36, 25, 8):
        data = batch(longest)
        torch.testing.assert_close(gradients(learner, data), gradients(plain, data), atol=1e-10, rtol=1e-10)
        counts.append(backend.graphs)
    assert counts[0] == 2  # one for each encoder: nothing breaks a graph
    assert counts[-1] == counts[1] == 3  # the text encoder anew for texts of any length, and never again
    printed = capsys.readouterr().err
    assert printed.count("compiled 2 encoders into 2 graphs") == 1
    assert "broken" not in printed


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of torch itself, which hides it from people
def test_blocks_share_four_graphs_whatever_the_length_of_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph for the last block of each tower, computed for one token, and one for all others."""
    monkeypatch.setattr("torch._dynamo.config.fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(text_transformer, "_on_cpu", lambda x: False)
    learner, plain, backend = clip(depth=4), clip(depth=4), Counting()
    names = list(learner.state_dict())
    compile_encoders(learner, "blocks", backend)
    assert list(learner.state_dict()) == names
    counts = []
    for longest in (9, 20, 30, 44, 14, 36, 25, 8):
        data = batch(longest)
        torch.testing.assert_close(gradients(learner, data), gradients(plain, data), atol=1e-10, rtol=1e-10)
        counts.append(backend.graphs)
    assert set(counts) == {4}
    assert "broken" not in capsys.readouterr().err
    with eagerly(learner):
        gradients(learner, batch(30, size=5))
    uncompile_encoders(learner)
    assert backend.graphs == 4
    assert not any(is_compiled(module) for module in learner.modules())


def test_blocks_are_found_in_any_encoder_and_without_them_it_is_compiled_whole() -> None:
    stage = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1)) for _ in range(2)]
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.Sequential(nn.TransformerEncoderLayer(4, 1), nn.TransformerEncoderLayer(4, 1))
    )
    assert repeated_blocks(net) == [*net[1]]
    assert repeated_blocks(nn.Sequential(*stage)) == []
    learner = make_learner(noise=False)
    compile_encoders(learner, "blocks", Counting())
    assert all(is_compiled(encoder) for encoder in learner.encoders.values())


def test_teachers_are_compiled_too(capsys: pytest.CaptureFixture[str]) -> None:
    def byol() -> Learner:
        torch.manual_seed(0)
        encoders = {"image": VisionTransformerConfig(size=16, patch_size=8, **SIZE).build()}
        head = {"hidden": 8, "norm": "batch"}
        config = ByolConfig(modality="image", view="crop", momentum=0.9, embedding=4, head=head, predictor=head)
        return Learner(encoders, config.build(encoders, Plan.unknown())).double()

    learner, backend = byol(), Counting()
    compile_encoders(learner, "default", backend)
    views = batch(20)["image"]["crop0"]
    data = Batch({"image": {"crop0": views, "crop1": views.flip(3)}}, torch.arange(len(views)))
    torch.testing.assert_close(gradients(learner, data), gradients(byol(), data), atol=1e-10, rtol=1e-10)
    assert backend.graphs == 2  # of the encoder and of its teacher
    assert "compiled 2 encoders into 2 graphs" in capsys.readouterr().err
    uncompile_encoders(learner)
    assert not any(is_compiled(module) for module in learner.modules())


class Breaking(Tower):
    """Looks at a value, which no graph can hold."""

    def prepare(self, x: Tensor) -> Tensor:
        print("looks", end="")
        return x


def test_breaks_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    learner = make_learner(noise=False)
    learner.encoders["a"] = Breaking(noise=False)
    compile_encoders(learner, "default", Counting())
    data = Batch({m: {"view0": torch.ones(4, 6)} for m in ("a", "b")}, torch.arange(4))
    learner(data)
    printed = capsys.readouterr().err
    assert "compiled 2 encoders into" in printed
    assert "graph broken 2 times: Failed to trace builtin operator" in printed
    learner(data)
    assert "graphs" not in capsys.readouterr().err


def test_evaluation_runs_encoders_as_they_are_written() -> None:
    learner, backend = clip(), Counting()
    compile_encoders(learner, "default", backend)
    ids = batch(20)["text"]["tokens0"]
    with eagerly(learner):
        eager = learner.encoders["text"](ids).pooled
    assert backend.graphs == 0
    learner.encoders["text"](ids)
    assert backend.graphs == 1
    assert torch.equal(eager, clip().encoders["text"](ids).pooled)


def test_off_does_nothing() -> None:
    learner = clip()
    compile_encoders(learner, "off")
    assert not any(is_compiled(encoder) for encoder in learner.encoders.values())
    assert TrainingConfig.model_validate_json(json.dumps(BASE)).compile == "off"
