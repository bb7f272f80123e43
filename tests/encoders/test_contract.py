"""What every encoder promises, for every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel, Encoder
from mmssl.recipe.unions import EncoderUnion
from tests.encoders.kinds import (
    CONTEXT,
    KINDS,
    build,
    channels_of,
    config_of,
    differ,
    inputs,
    is_audio,
    is_series,
    is_text,
    stir,
)

EVERY = pytest.mark.parametrize("name", KINDS)
CHECKPOINTED = pytest.mark.parametrize(
    "name",
    [
        "vit",
        "vit_mean",
        "vit_registers",
        "text_transformer",
        "audio_transformer",
        "series_transformer",
        "video_space_time",
        "video_space_time_joint",
        "timm_vit",
        "timm_convnext",
        "open_clip_image",
        "open_clip_text",
        "hf_bert",
        "hf_vit",
        "hf_ast_audio",
    ],
)
# Softmax does not see what is added to all keys, so these have no gradient but rounding.
KEY_BIASES = ("k_proj.bias", "key.bias")


def test_every_kind_of_a_recipe_is_here() -> None:
    (union, _) = get_args(EncoderUnion)
    named = {member.model_fields["kind"].default for member in get_args(union)}
    assert named == {config.kind for config in KINDS.values()}  # type: ignore[attr-defined]


@EVERY
def test_shapes_are_as_announced(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    features = encoder(inputs(name))
    assert features.pooled.shape == (3, encoder.width)
    assert features.pooled.dtype == torch.float32
    assert features.pooled.std(0).max() > 0  # it depends on the input
    if Encoder.TOKENS in encoder.capabilities:
        assert features.tokens is not None
        assert encoder.grid is not None
        assert features.grid == encoder.grid
        assert features.tokens.shape == (3, torch.tensor(encoder.grid).prod(), encoder.width)
    else:
        assert features.tokens is None
        assert encoder.grid is None


@EVERY
def test_configs_survive_json(name: str) -> None:
    config = KINDS[name]
    assert type(config).model_validate_json(config.model_dump_json()) == config


@EVERY
def test_layers_hold_every_parameter_once(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path)
    layers = encoder.layers()
    listed = [id(parameter) for group in layers for parameter in group]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in encoder.parameters()}
    assert all(layers)
    assert len(layers) >= 3


@EVERY
def test_layers_go_from_input_to_output(name: str, tmp_path: Path) -> None:
    """Locking all but the last group leaves the input's gradient path cut: only that group is reached."""
    encoder = build(name, tmp_path, frozen=True, unlocked_layers=1)
    trained = {id(parameter) for parameter in encoder.parameters() if parameter.requires_grad}
    assert trained
    assert trained <= {id(parameter) for parameter in encoder.layers()[-1]}
    loss(encoder, name).backward()
    used = {id(parameter) for parameter in encoder.parameters() if parameter.grad is not None}
    assert used == trained


@EVERY
def test_every_trained_parameter_gets_a_gradient_from_pooled(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path)
    loss(encoder, name).backward()
    for parameter_name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            if not parameter_name.endswith(KEY_BIASES):
                assert parameter.grad.abs().max() > 0, parameter_name


@EVERY
def test_samples_do_not_influence_each_other_in_evaluation(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    x = inputs(name, 4)
    with torch.no_grad():
        together = encoder(x)
        for row in range(4):
            alone = encoder(x[row : row + 1])
            torch.testing.assert_close(alone.pooled, together.pooled[row : row + 1], atol=1e-5, rtol=1e-5)
            if together.tokens is not None:
                torch.testing.assert_close(alone.tokens, together.tokens[row : row + 1], atol=1e-5, rtol=1e-5)


@EVERY
def test_pooled_alone_is_the_same(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    with torch.no_grad():
        whole, pooled = encoder(inputs(name)).pooled, encoder(inputs(name), pooled_only=True).pooled
    torch.testing.assert_close(pooled, whole, atol=1e-5, rtol=1e-5)


@EVERY
def test_embeddings_are_their_own(name: str, tmp_path: Path) -> None:
    """embed(x) is embed(x), to the bit, and embed(batch)[i] is embed(single i): embeddings that change from call to call, or
    with their neighbours, are what several published models of sound give."""
    encoder = build(name, tmp_path)
    torch.manual_seed(5)
    model = EmbeddingModel({"thing": encoder}, {"thing": nn.Linear(encoder.width, 16)}).eval()
    x = inputs(name, 5)
    with torch.no_grad():
        together = model.embed("thing", x)
        torch.manual_seed(6)
        assert torch.equal(model.embed("thing", x), together)
        alone = torch.cat([model.embed("thing", x[row : row + 1]) for row in range(5)])
        turned = model.embed("thing", x.flip(0)).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)
    torch.testing.assert_close(turned, together, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in KINDS if is_audio(name)])
def test_windows_of_a_sound_are_averaged(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    x = inputs(name, 6)
    with torch.no_grad():
        features = encoder(x.unflatten(0, (3, 2)))
        wanted = encoder(x).pooled.unflatten(0, (3, 2)).mean(1)
    torch.testing.assert_close(features.pooled, wanted, atol=1e-6, rtol=1e-5)
    assert features.tokens is None
    with pytest.raises(ValueError, match=r"wanted sounds|no 'keep'"):
        encoder(x.unflatten(0, (3, 2)), keep=torch.zeros(3, 1, dtype=torch.int64))


@EVERY
def test_evaluation_is_deterministic_and_state_is_complete(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path)
    encoder(inputs(name))  # moves running statistics, where there are any
    encoder.eval()
    other: Encoder = config_of(name, tmp_path).build()  # type: ignore[attr-defined]
    with torch.no_grad():
        first = encoder(inputs(name)).pooled
        assert not torch.equal(other.eval()(inputs(name)).pooled, first)
        other.load_state_dict(encoder.state_dict())
        assert torch.equal(encoder(inputs(name)).pooled, first)
        assert torch.equal(other(inputs(name)).pooled, first)


@EVERY
def test_bytes_and_fractions_give_the_same_features(name: str, tmp_path: Path) -> None:
    if is_text(name):
        assert torch.equal(build(name, tmp_path).prepare(inputs(name)), inputs(name))
        return
    encoder = build(name, tmp_path).eval()
    x = inputs(name)
    if is_series(name):
        with pytest.raises(ValueError, match="wanted series"):
            encoder(x.long())
        return
    if is_audio(name):
        assert torch.equal(encoder(x).pooled, encoder(x.float() / 32768).pooled)
        with pytest.raises(ValueError, match="wanted sounds"):
            encoder(x.long())
        return
    assert torch.equal(encoder(x).pooled, encoder(x.float() / 255).pooled)
    black = encoder.prepare(torch.zeros(1, channels_of(name), 4, 4, dtype=torch.uint8))[..., 0, 0].flatten()
    white = encoder.prepare(torch.full((1, channels_of(name), 4, 4), 255, dtype=torch.uint8))[..., 0, 0].flatten()
    assert (white - black > 1).all()  # divided by 255 and by a deviation below 1
    assert (black < 0).all()
    with pytest.raises(ValueError, match=r"wanted (images|clips)"):
        encoder(x.long())


def augmented(name: str) -> dict[str, Any]:
    """Changes to a kind that switch its augmentation on; none where it has none."""
    front_end = KINDS[name].model_dump().get("front_end")
    masks = {"filter_masks": 2, "filter_width": 20, "time_masks": 2, "time_width": 20}
    return {"front_end": front_end | {"spec_augment": masks}} if front_end else {}


@EVERY
def test_preparing_has_no_chance_in_it(name: str, tmp_path: Path) -> None:
    """What `prepare` gives is what masked objectives predict: the same in every call, in training as in evaluation."""
    encoder = build(name, tmp_path, **augmented(name)).train()
    before = torch.get_rng_state()
    prepared = encoder.prepare(inputs(name))
    assert torch.equal(encoder.prepare(inputs(name)), prepared)
    assert torch.equal(encoder.eval().prepare(inputs(name)), prepared)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in KINDS if is_audio(name)])
def test_prepared_sounds_are_taken_by_those_who_say_so(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path).eval(), inputs(name)
    assert (Encoder.PREPARED in encoder.capabilities) == name.startswith(("audio_transformer", "audio_resnet"))
    if Encoder.PREPARED not in encoder.capabilities:
        return
    prepared = encoder.prepare(x)
    with torch.no_grad():
        wanted, found, other = encoder(x), encoder(prepared), encoder(prepared + 1)
    assert wanted.tokens is not None
    assert found.tokens is not None
    assert torch.equal(found.pooled, wanted.pooled)
    assert torch.equal(found.tokens, wanted.tokens)
    assert not torch.equal(other.pooled, wanted.pooled)
    assert torch.equal(encoder.prepare(prepared), prepared)


@pytest.mark.parametrize("name", [name for name in KINDS if is_audio(name) and augmented(name)])
def test_augmentation_acts_on_the_input_in_training_alone(name: str, tmp_path: Path) -> None:
    encoder, x = build(name, tmp_path, **augmented(name)), inputs(name)
    plain = build(name, tmp_path)
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x).pooled, plain.eval()(x).pooled)
        torch.manual_seed(0)
        first = encoder.train()(x).pooled
        assert not torch.allclose(encoder(x).pooled, first, atol=1e-3)
        torch.manual_seed(0)
        assert not torch.allclose(plain.train()(x).pooled, first, atol=1e-3)


@EVERY
def test_low_precision_runs(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    with torch.no_grad():
        exact = encoder(inputs(name)).pooled
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(inputs(name)).pooled.float()
    assert torch.nn.functional.cosine_similarity(rough, exact).min() > 0.99


@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "resnet",
        "text_transformer",
        "text_transformer_mean",
        "audio_transformer",
        "audio_resnet",
        "series_transformer",
        "video_frames",
        "video_space_time",
    ],
)
def test_graphs_hold_for_any_batch_size(name: str, tmp_path: Path) -> None:
    """Nothing looks at values or fixes the number of samples while a graph is made: what compiling and exporting need."""
    encoder = build(name, tmp_path).eval()
    dimensions = ({0: torch.export.Dim("samples", min=2, max=64)},)
    graph = torch.export.export(_Pooled(encoder), (inputs(name),), dynamic_shapes=dimensions).module()
    torch.testing.assert_close(graph(inputs(name, 5)), encoder(inputs(name, 5)).pooled)


@EVERY
def test_frozen_means_untouched(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path, frozen=True)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(inputs(name)).pooled.requires_grad


@EVERY
def test_unlocked_layers_must_mean_something(name: str, tmp_path: Path) -> None:
    groups = len(build(name, tmp_path).layers())
    with pytest.raises(ValueError, match=f"got unlocked_layers {groups + 1} and frozen true, wanted 0 to {groups}"):
        build(name, tmp_path, frozen=True, unlocked_layers=groups + 1)
    with pytest.raises(ValueError, match="frozen false"):
        build(name, tmp_path, unlocked_layers=1)


@CHECKPOINTED
def test_checkpointing_changes_work_and_not_gradients(name: str, tmp_path: Path) -> None:
    gradients, calls = {}, {}
    for checkpointing in (False, True):
        encoder = build(name, tmp_path, checkpointing=checkpointing)
        encoder.train()
        seen: list[nn.Module] = []
        for module in encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(lambda module, args, out, seen=seen: seen.append(module))
        loss(encoder, name).backward()
        gradients[checkpointing] = [p.grad for p in encoder.parameters() if p.requires_grad]
        calls[checkpointing] = len(seen)
    assert calls[True] > calls[False] > 0
    for one, other in zip(gradients[False], gradients[True], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@EVERY
def test_masks_are_refused_by_those_who_cannot(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    keep, replace = torch.zeros(3, 1, dtype=torch.int64), (torch.zeros(3, 12, dtype=torch.bool), torch.zeros(()))
    if Encoder.MASK_DROP not in encoder.capabilities:
        with pytest.raises(ValueError, match=r"mask_drop|no 'keep'"):
            encoder(inputs(name), keep=keep)
    if Encoder.MASK_REPLACE not in encoder.capabilities:
        with pytest.raises(ValueError, match="no 'replace'"):
            encoder(inputs(name), replace=replace)


@pytest.mark.parametrize("name", ["vit", "vit_mean", "vit_bands"])
def test_dropped_tokens_have_no_influence(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    x = inputs(name).float() / 255
    keep = torch.tensor([[0, 5, 15], [5, 2, 3], [9, 0, 12]])
    features = encoder(x, keep=keep)
    assert features.tokens is not None
    assert features.tokens.shape == (3, 3, 32)
    assert features.grid is None

    other = change_patches(x, keep, inside=False)
    assert torch.equal(encoder(other, keep=keep).pooled, features.pooled)
    assert differ(encoder(change_patches(x, keep, inside=True), keep=keep).pooled, features.pooled)

    order = encoder(x, keep=keep.flip(1))
    torch.testing.assert_close(order.pooled, features.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(order.tokens, features.tokens.flip(1), atol=1e-5, rtol=1e-5)
    everything = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(encoder(x, keep=everything).tokens, encoder(x).tokens)


@pytest.mark.parametrize("name", ["vit", "vit_mean", "vit_bands"])
def test_replaced_patches_have_no_influence(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    x = inputs(name).float() / 255
    hidden = torch.tensor([[0, 5, 15], [5, 2, 3], [9, 0, 12]])
    mask = torch.zeros(3, 16, dtype=torch.bool).scatter(1, hidden, True)
    value = torch.randn(32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    features = encoder(x, replace=(mask, value))
    assert features.grid == (4, 4)
    assert torch.equal(encoder(change_patches(x, hidden, inside=True), replace=(mask, value)).pooled, features.pooled)
    assert differ(encoder(x, replace=(mask, value.flip(0))).pooled, features.pooled)
    assert differ(encoder(x).pooled, features.pooled)
    torch.testing.assert_close(encoder(x, replace=(torch.zeros_like(mask), value)).pooled, encoder(x).pooled)
    features.pooled.square().sum().backward()
    assert value.grad is not None
    assert value.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["audio_transformer", "audio_transformer_mean"])
def test_masked_patches_of_sounds_have_no_influence(name: str, tmp_path: Path) -> None:
    """The patch embedding itself is changed under the masks: neighbouring patches of a spectrogram share samples."""
    encoder = build(name, tmp_path).eval()
    x = inputs(name)
    chosen = torch.tensor([[0, 5, 15], [5, 2, 3], [9, 0, 12]])
    mask = torch.zeros(3, 16, dtype=torch.bool).scatter(1, chosen, True)
    value = torch.randn(32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    kept, replaced, whole = encoder(x, keep=chosen), encoder(x, replace=(mask, value)), encoder(x)
    assert kept.tokens.shape == (3, 3, 32)
    assert kept.grid is None
    assert replaced.grid == whole.grid == (4, 4)

    def change(where: Tensor) -> None:
        noise = torch.randn(3, 32, 4, 4, generator=torch.Generator().manual_seed(5)) * where.view(3, 1, 4, 4)
        encoder.patch_embedding.register_forward_hook(lambda module, args, out: out + noise)

    change(~mask)
    assert torch.equal(encoder(x, keep=chosen).pooled, kept.pooled)
    assert differ(encoder(x, replace=(mask, value)).pooled, replaced.pooled)
    encoder.patch_embedding._forward_hooks.clear()
    change(mask)
    assert torch.equal(encoder(x, replace=(mask, value)).pooled, replaced.pooled)
    assert differ(encoder(x, keep=chosen).pooled, kept.pooled)
    encoder.patch_embedding._forward_hooks.clear()

    assert differ(encoder(x, replace=(mask, value.flip(0))).pooled, replaced.pooled)
    torch.testing.assert_close(encoder(x, keep=torch.arange(16).expand(3, -1)).tokens, whole.tokens)
    replaced.pooled.square().sum().backward()
    assert value.grad is not None
    assert value.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["text_transformer", "text_transformer_mean"])
def test_replaced_words_have_no_influence(name: str, tmp_path: Path) -> None:
    encoder = build(name, tmp_path).eval()
    ids = inputs(name)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, 1] = True
    value = torch.randn(32, generator=torch.Generator().manual_seed(3))
    other = ids.clone()
    other[:, 1] = 7
    replaced = encoder(ids, replace=(mask, value)).pooled
    assert torch.equal(encoder(other, replace=(mask, value)).pooled, replaced)
    assert differ(encoder(other).pooled, encoder(ids).pooled)
    assert differ(encoder(ids, replace=(mask, value.flip(0))).pooled, replaced)


@pytest.mark.parametrize("name", ["vit", "vit_mean", "text_transformer", "text_transformer_mean"])
def test_tokens_that_are_named_by_their_places_are_all_there_in_training(name: str, tmp_path: Path) -> None:
    """Encoders that leave tokens out by themselves do so in calls without masks alone."""
    fewer = {"keep_tokens": 4} if is_text(name) else {"patch_dropout": 0.5}
    encoder, plain, x = build(name, tmp_path, **fewer).train(), build(name, tmp_path).train(), inputs(name)
    mask = torch.zeros(3, CONTEXT if is_text(name) else 16, dtype=torch.bool)
    mask[:, 1] = True
    with torch.no_grad():
        made, wanted = (one(x, replace=(mask, torch.ones(32))) for one in (encoder, plain))
        torch.testing.assert_close(made.tokens, wanted.tokens)
        torch.testing.assert_close(made.pooled, wanted.pooled)
        assert encoder(x).tokens.shape[1] < mask.shape[1]


class _Pooled(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x).pooled


def loss(encoder: Encoder, name: str) -> Tensor:
    """A sum of pooled features with random factors, which no normalisation can cancel."""
    pooled = encoder(inputs(name)).pooled
    return (pooled * torch.randn(pooled.shape, generator=torch.Generator().manual_seed(4))).sum()


def change_patches(x: Tensor, patches: Tensor, *, inside: bool) -> Tensor:
    """Invert the 8 x 8 patches with these numbers, or all others."""
    chosen = torch.zeros(len(x), 16, dtype=torch.bool).scatter(1, patches, True)
    chosen = chosen if inside else ~chosen
    area = chosen.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return torch.where(area, 1 - x, x)


def test_noise_reaches_every_parameter(tmp_path: Path) -> None:
    """The other tests lean on `stir`."""
    encoder: Encoder = config_of("resnet", tmp_path).build()  # type: ignore[attr-defined]
    before = [parameter.clone() for parameter in encoder.parameters()]
    stir(encoder)
    assert all(not torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
