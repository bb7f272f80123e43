"""Weights from files: which are found, which are refused, and what the refusal says."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmssl.core.encoder import Encoder
from mmssl.core.errors import CheckpointError
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformer, VisionTransformerConfig
from mmssl.encoders.weight_files import read_state
from mmssl.encoders.weights import load_strictly
from tests.encoders.kinds import stir

VIT = VisionTransformerConfig(size=32, patch_size=8, width=32, depth=2, heads=4)
TEXT = TextTransformerConfig(vocab_size=50, context_length=8, width=32, depth=2, heads=4)


def trained(config: VisionTransformerConfig = VIT) -> VisionTransformer:
    encoder = config.build()
    stir(encoder)
    return encoder


def same(a: Encoder, b: Encoder) -> bool:
    states = a.state_dict(), b.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(x, states[1][name]) for name, x in states[0].items()
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("prefix", ["", "encoders.image.", "module.encoder."])
def test_own_weights_are_found_under_any_prefix(suffix: str, prefix: str, tmp_path: Path) -> None:
    encoder, file = trained(), tmp_path / f"weights{suffix}"
    state = {prefix + name: tensor for name, tensor in encoder.state_dict().items()}
    if prefix:
        state["objective.logit_scale"] = torch.zeros(1)
    if suffix == ".pt":
        torch.save({"state_dict": state, "epoch": 3}, file)
    else:
        save_file(state, file)
    assert same(VIT.model_copy(update={"weights": file}).build(), encoder)


def test_the_right_tower_of_a_run_is_taken(tmp_path: Path) -> None:
    """Two vision transformers and a text transformer in one file: names tell them apart, then shapes."""
    file = tmp_path / "model.safetensors"
    wide = VIT.model_copy(update={"width": 64})
    image, depth, text = trained(), trained(wide), TEXT.build()
    towers: dict[str, Encoder] = {"depth": depth, "image": image, "text": text}
    save_file({f"encoders.{m}.{n}": x for m, tower in towers.items() for n, x in tower.state_dict().items()}, file)
    assert same(VIT.model_copy(update={"weights": file}).build(), image)
    assert same(wide.model_copy(update={"weights": file}).build(), depth)
    assert same(TEXT.model_copy(update={"weights": file}).build(), text)


def test_two_towers_that_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(
        {f"encoders.{m}.{n}": x.clone() for m in ("left", "right") for n, x in trained().state_dict().items()}, file
    )
    with pytest.raises(
        CheckpointError, match=r"at several places, \['encoders.left.', 'encoders.right.'\], wanted one"
    ):
        VIT.model_copy(update={"weights": file}).build()


def test_of_two_towers_that_fit_the_place_says_which(tmp_path: Path) -> None:
    file, towers = tmp_path / "model.safetensors", {m: trained() for m in ("left", "right")}
    with torch.no_grad():
        towers["right"].class_embedding.fill_(7.0)  # type: ignore[operator]
    save_file({f"encoders.{m}.{n}": x.clone() for m, t in towers.items() for n, x in t.state_dict().items()}, file)
    for name, tower in towers.items():
        assert same(VIT.model_copy(update={"weights": file, "place": f"encoders.{name}."}).build(), tower)
    with pytest.raises(CheckpointError, match=r"has no weights for VisionTransformer under 'encoders\.middle\.'"):
        VIT.model_copy(update={"weights": file, "place": "encoders.middle."}).build()
    with pytest.raises(ValueError, match="without weights, wanted both"):
        VIT.model_copy(update={"place": "encoders.left."}).build()


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    encoder, file = trained(), tmp_path / "weights.safetensors"
    save_file({name: tensor.half() for name, tensor in encoder.state_dict().items()}, file)
    loaded = VIT.model_copy(update={"weights": file}).build()
    assert loaded.positional_embedding.dtype == torch.float32
    torch.testing.assert_close(loaded.positional_embedding, encoder.positional_embedding, atol=1e-3, rtol=1e-3)


def test_positions_are_resampled_to_another_size(tmp_path: Path) -> None:
    encoder, file = trained(), tmp_path / "weights.safetensors"
    save_file(encoder.state_dict(), file)
    larger = VIT.model_copy(update={"weights": file, "size": 64}).build().eval()
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(larger(x).pooled, encoder.eval()(x).pooled)

    settings = {"layers": (1, 1), "channels": 8}
    network = ResNetConfig(size=32, **settings).build()
    save_file(network.state_dict(), file)
    larger_network = ResNetConfig(size=64, **settings, weights=file).build().eval()
    torch.testing.assert_close(larger_network(x).pooled, network.eval()(x).pooled)


def test_a_shorter_context_takes_the_first_positions(tmp_path: Path) -> None:
    encoder, file = TEXT.build(), tmp_path / "weights.safetensors"
    save_file(encoder.state_dict(), file)
    shorter = TEXT.model_copy(update={"weights": file, "context_length": 5}).build()
    assert torch.equal(shorter.positional_embedding, encoder.positional_embedding[:5])
    with pytest.raises(CheckpointError, match=r"positional_embedding: got \[8, 32\], wanted \[9, 32\]"):
        TEXT.model_copy(update={"weights": file, "context_length": 9}).build()


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    state = trained().state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["norm_post.bias"]
    save_file({f"visual.{name}": tensor for name, tensor in state.items()}, file)
    changed = VIT.model_copy(update={"weights": file, "width": 64, "depth": 3})
    with pytest.raises(CheckpointError) as caught:
        changed.build()
    message = str(caught.value)
    assert f"{str(file)!r} (names under 'visual.') was not made for this VisionTransformer" in message
    assert "missing (13): blocks.2.norm1.weight" in message
    assert ", and 8 more" in message
    assert "unexpected (1): extra.weight" in message
    assert "positional_embedding: got [17, 32], wanted [17, 64]" in message
    assert "Give the encoder the settings of the saved one" in message


def test_a_deeper_model_is_not_cut(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(trained(VIT.model_copy(update={"depth": 3})).state_dict(), file)
    with pytest.raises(CheckpointError, match=r"unexpected \(12\): blocks\.2\."):
        VIT.model_copy(update={"weights": file}).build()


def test_a_norm_that_the_encoder_lacks_is_not_dropped(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(trained().state_dict(), file)
    with pytest.raises(CheckpointError, match=r"unexpected \(2\): norm_pre"):
        VIT.model_copy(update={"weights": file, "pre_norm": False}).build()


def test_nothing_of_a_stranger_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"fc.weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"has no weights for VisionTransformer: got names like fc\.weight"):
        VIT.model_copy(update={"weights": file}).build()


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("touched-by-a-pickle"),)


def test_files_with_code_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "payload": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    for name in ("evil.pt", "plain.pt", "module.pt"):
        with pytest.raises(CheckpointError, match="Files with program code"):
            read_state(tmp_path / name)
    assert not (tmp_path / "touched-by-a-pickle").exists()


def test_damaged_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "weights.safetensors"
    save_file(trained().state_dict(), whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    torch.save({"a": torch.zeros(100)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-100])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "words.pt").write_text("no tensors")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    for name, message in (
        ("none.pt", "there is no such file"),
        ("cut.safetensors", "cannot read weights"),
        ("cut.pt", "cannot read weights"),
        ("empty.pt", "cannot read weights"),
        ("words.pt", "torch finds no tensors, or other objects beside tensors"),
        ("list.pt", "got a list"),
        ("numbers.pt", "got a dict with epoch"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_strictly(nn.Linear(1, 1), tmp_path / name)
        assert name in str(caught.value)
        assert "weights_only" not in str(caught.value)  # torch's advice would run what stands in the file
