"""LoRA: adapters alone are trained and saved; merged weights are a plain model; settings that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmssl
from mmssl.encoders.adapters.transformers import HfTextConfig
from mmssl.encoders.lora import LoraConfig, add_lora, merge_lora
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.training.checkpoints.read import load_weights, read_optimizer, resolve
from tests.encoders.kinds import BERT
from tests.pipelines.conftest import World

pytest.importorskip("peft")
VIT = VisionTransformerConfig(size=32, patch_size=8, width=32, depth=2, heads=2)
LORA = "lora={image: {rank: 2}, text: {rank: 2, targets: [qkv, out], dora: true}}"


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_start_without_effect_and_merge_into_plain_weights(dora: bool) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[5, 9, 40, 0, 0], [7, 3, 2, 40, 0]])
    text = TextTransformerConfig(context_length=5, width=16, depth=2, heads=2, vocab_size=41)
    for encoder, x in ((VIT.build(), torch.rand(2, 3, 32, 32)), (text.build(), ids)):
        encoder.eval()
        names = set(encoder.state_dict())
        before = encoder(x, pooled_only=True).pooled
        add_lora(encoder, LoraConfig(rank=2, dora=dora))
        torch.testing.assert_close(encoder(x, pooled_only=True).pooled, before, atol=1e-6, rtol=0)
        assert all(("lora" in name) == p.requires_grad for name, p in encoder.named_parameters())
        for name, p in encoder.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.3)
        adapted = encoder(x, pooled_only=True).pooled
        assert (adapted - before).abs().max() > 0.05
        torch.testing.assert_close(
            encoder(x).pooled, adapted, atol=1e-5, rtol=1e-5
        )  # the path of the pooled token alone
        merge_lora(encoder)
        assert set(encoder.state_dict()) == names
        torch.testing.assert_close(encoder(x, pooled_only=True).pooled, adapted, atol=1e-5, rtol=1e-5)


def test_a_run_trains_and_saves_adapters_only(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = f"weights={world.run}"
    assert world.pretrain(f"output={tmp_path}", "name=lora", start, LORA, "ema={decay: 0.5}") == 0
    run = tmp_path / "lora"
    base, last = load_weights(resolve(world.run)), resolve(run, "last")
    trained = [name for group in read_optimizer(last)["param_groups"] for name in group["param_names"]]
    assert all("lora_" in name or name.startswith("objective.") for name in trained)
    assert {name.split(".")[0] for name in trained} == {"image", "text", "objective"}
    files = [run / "checkpoints" / folder / "frozen.safetensors" for folder in ("step_00000003", "step_00000006")]
    assert files[0].stat().st_ino == files[1].stat().st_ino  # one file on the disk
    assert (last / "model.safetensors").stat().st_size < files[0].stat().st_size / 10
    saved = load_weights(last)
    for name, x in base.items():
        if name.startswith("encoders."):
            stem, _, end = name.rpartition(".")
            assert torch.equal(saved.get(f"{stem}.base_layer.{end}", saved.get(name)), x), name
    model = mmssl.load(run)
    state = model.embedding.encoders.state_dict()
    assert {f"encoders.{name}" for name in state} == {name for name in base if name.startswith("encoders.")}
    assert not torch.equal(state["image.blocks.0.mlp.up.weight"], base["encoders.image.blocks.0.mlp.up.weight"])
    assert world.pretrain(f"output={tmp_path}", "name=lora", start, LORA, "ema={decay: 0.5}", "duration=8 steps") == 0
    capfd.readouterr()
    assert world.pretrain(f"output={tmp_path}", "name=next", f"weights={run}") == 4
    assert "has LoRA adapters; merge them" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (("lora={sound: {}}",), "lora.sound: got no encoder of this name"),
        (("lora={image: {}}", "encoders.image.frozen=true"), "wanted one of both"),
        (("lora={image: {}}", "optimizer.layer_decay=0.7"), "got a rate by layers with lora"),
        (
            ("lora={image: {targets: [q_proj]}}",),
            r"got ['q_proj'], which fit no linear layer; wanted ends of names such as",
        ),
    ],
)
def test_what_contradicts_lora_is_refused(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], overrides: tuple[str, ...], wanted: str
) -> None:
    assert world.pretrain(f"output={tmp_path}", "name=no", *overrides) == 2
    assert wanted in capfd.readouterr().err


def test_a_transformers_tower_is_adapted() -> None:
    encoder = HfTextConfig(config=BERT, pool="mean").build()
    encoder.eval()
    ids = torch.randint(1, 90, (2, 6), generator=torch.Generator().manual_seed(0))
    before = encoder(ids, pooled_only=True).pooled
    add_lora(encoder, LoraConfig(rank=2, targets=("query", "value")))
    assert sum(p.requires_grad for p in encoder.parameters()) == 2 * 2 * 2
    torch.testing.assert_close(encoder(ids, pooled_only=True).pooled, before)
    merge_lora(encoder)
    torch.testing.assert_close(encoder(ids, pooled_only=True).pooled, before)
