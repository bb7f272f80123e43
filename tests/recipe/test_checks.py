"""Parts of a recipe that contradict each other are refused at build, each with one sentence; what is meant so is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError, RecipeError
from mmssl.core.plan import Plan
from mmssl.datasets import digit_scenes
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.objectives.clip import ClipObjective
from mmssl.objectives.mae import MaeObjective
from mmssl.objectives.simclr import SimClrObjective
from mmssl.recipe.checks import check_compile
from mmssl.recipe.recipe import load_recipe

CONFIGS = Path(__file__).parents[2] / "configs"
PICTURES = CONFIGS / "quickstart/image_text.yaml"
VIDEOS = CONFIGS / "video/space_time_b_16.yaml"
SMALL = (
    "encoders.video={kind: space_time, size: 32, frames: 4, patch_size: 16, tubelet: 2, width: 32, depth: 1, heads: 2}",
)
SMALL += ("encoders.text={kind: text_transformer, context_length: 77, width: 32, depth: 1, heads: 2}",)
SMALL += ("modalities.video.size=32", "modalities.video.frames=4")
CLIP = "{kind: clip, pairs: [[image, text]], views: {image: crop, text: tokens}, embedding: 16, temperature: 0.07}"
HEAD = "{kind: mlp, layers: 2, hidden: 16}"
SIMCLR = f"{{kind: simclr, modality: image, view: augmented, temperature: 0.1, embedding: 16, head: {HEAD}}}"
SLIP = f"objective={{kind: weighted, objectives: {{a: {{objective: {CLIP}}}, b: {{objective: {SIMCLR}}}}}}}"
MASKED = CONFIGS / "image/mae_vit_b_16.yaml"
MASKED_SMALL = (
    "objective.decoder={width: 16, depth: 1, heads: 1}",
    "encoders.image={kind: vit, size: 224, patch_size: 16, width: 16, depth: 1, heads: 1}",
)
VIEWS = "modalities.image.views={crop: {kind: resized_crop}, augmented: {kind: simclr}}"


def build(recipe: Path, *overrides: str) -> None:
    loaded = load_recipe(recipe, list(overrides))
    loaded.build_learner(loaded.build_modalities(), Plan.unknown())


def refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        build(recipe, *overrides)
    _, *sentences = str(caught.value).splitlines()
    assert len(sentences) == 1
    return sentences[0].strip()


def mirrored(flip: float) -> str:
    return f"modalities.image.views.crop={{kind: resized_crop, flip: {flip}}}"


def test_a_view_that_only_refreshes_read_has_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(PICTURES, VIEWS).startswith("modalities.image.views.augmented: the objective does not use it")
    monkeypatch.setattr(ClipObjective, "refresh_needs", lambda self: {"image": {"augmented": 1}})
    assert refused(PICTURES, VIEWS).startswith("modalities.image.views.augmented: the objective does not use it")
    monkeypatch.setattr(ClipObjective, "refresh_every", lambda self: 5)
    build(PICTURES, VIEWS)


def test_a_modality_that_the_objective_does_not_use() -> None:
    said = refused(PICTURES, "modalities.audio={kind: audio, rate: 8000, seconds: 1.0}")
    assert said.startswith("modalities.audio: the objective does not use it: remove it, ")
    assert said.endswith("give it `views: {}`")


def test_an_encoder_that_the_objective_does_not_use() -> None:
    sound = "modalities.audio={kind: audio, rate: 8000, seconds: 1.0, channels: mono, views: {}}"
    front_end = "{kind: mel, rate: 8000, window: 256, hop: 80, mels: 40}"
    hearing = f"encoders.audio={{kind: audio_resnet, seconds: 1.0, front_end: {front_end}}}"
    said = refused(PICTURES, sound, hearing)
    assert said == "encoders.audio: the objective does not use it: remove it, or add it to the objective"
    build(PICTURES, sound)


def test_a_mirror_of_one_modality_beside_that_of_all() -> None:
    both = "data.synchronized=[{kind: flip}]"
    assert refused(PICTURES, both, mirrored(0.5)).startswith(
        "modalities.image.views.crop.flip: got 0.5 beside the flip of"
    )
    build(PICTURES, both, mirrored(0))
    build(PICTURES, "data.synchronized=[]", mirrored(0.5))
    build(PICTURES, "data.synchronized=[{kind: flip, probability: 0}]", mirrored(0.5))
    land, crop = CONFIGS / "quickstart/array_text.yaml", "modalities.array.views.crop={kind: resized_crop, turns: %s}"
    assert refused(land, both, crop % "true").startswith(
        "modalities.array.views.crop.turns: got true beside the flip of"
    )
    build(land, both, crop % "false")


def test_a_window_of_time_that_is_shorter_than_views() -> None:
    window = "data.synchronized=[{kind: time_crop, seconds: %s}]"
    said = refused(VIDEOS, *SMALL, window % 1.5)
    assert said.startswith("modalities.video.seconds: got 2, and time_crop of data.synchronized leaves 1.5 s")
    build(VIDEOS, *SMALL, window % 2.0)
    build(VIDEOS, *SMALL, window % 3.0)
    build(VIDEOS, *SMALL, window % 1.5, "modalities.video.seconds=null")


def test_views_that_each_take_a_part_of_their_own() -> None:
    clips, longer = CONFIGS / "quickstart/video_audio.yaml", "data.synchronized=[{kind: time_crop, seconds: 4.0}]"
    said = refused(clips, longer)
    assert said.startswith(
        "modalities.audio.seconds 2, modalities.video.seconds 2: each view would crop its own part of"
    )
    build(clips)
    build(clips, "data.synchronized=[]")
    build(clips, longer, "modalities.video.seconds=null")  # the whole of it, and the sound lies somewhere within


def test_views_that_are_compared_with_themselves_may_be_mirrored() -> None:
    build(PICTURES, SLIP, VIEWS, "data.synchronized=[{kind: flip}]")


def test_optional_modalities_of_objectives_that_need_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    build(PICTURES, SLIP, VIEWS, "data.optional=[image]")
    build(MASKED, *MASKED_SMALL, "data.optional=[image]")
    monkeypatch.setattr(SimClrObjective, "accepts_absent", False)
    monkeypatch.setattr(MaeObjective, "accepts_absent", False)
    said = refused(PICTURES, SLIP, VIEWS, "data.optional=[image]")
    assert said.startswith(
        "data.optional: got 'image', and objective.objectives.b (SimClrObjective) needs it of every sample"
    )
    said = refused(MASKED, *MASKED_SMALL, "data.optional=[image]")
    assert said.startswith("data.optional: got 'image', and objective (")
    build(PICTURES, SLIP, VIEWS, "data.optional=[text]")
    build(PICTURES, "data.optional=[image, text]")


BERT = "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, intermediate_size: 16, vocab_size: %d, "
BERT += "max_position_embeddings: %d}"


@pytest.mark.parametrize(
    "encoder",
    [
        "{{kind: text_transformer, width: 16, depth: 1, heads: 1, vocab_size: {size}, context_length: {longest}}}",
        "{{kind: hf_text, pool: mean, config: {bert}}}",
        "{{kind: open_clip, tower: text, model: 'local-dir:{folder}'}}",
    ],
    ids=["own", "transformers", "open_clip"],
)
def test_tokenizers_that_do_not_fit_the_encoder(encoder: str, tmp_path: Path) -> None:
    """Found at build, and not at the first long caption."""

    def text(size: int, longest: int) -> str:
        towers: dict[str, Any] = {
            "vision_cfg": {},
            "text_cfg": {"vocab_size": size, "context_length": longest, "width": 16, "layers": 1},
        }
        towers["text_cfg"]["heads"] = 1
        settings = {"model_cfg": {"embed_dim": 16, **towers}, "preprocess_cfg": {}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
        return "encoders.text=" + encoder.format(
            size=size, longest=longest, bert=BERT % (size, longest), folder=tmp_path
        )

    clip = "modalities.text.tokenizer={kind: clip, context_length: %d}"
    said = refused(PICTURES, text(49408, 32), clip % 33)
    assert said.startswith(
        "modalities.text.tokenizer.context_length: got 33, wanted at most 32, the context length of encoders.text"
    )
    said = refused(PICTURES, text(49407, 32), clip % 32)
    assert said.startswith(
        "modalities.text.tokenizer: got one of 49408 token ids, wanted at most 49407, the vocabulary size of enc"
    )
    build(PICTURES, text(49408, 32), clip % 32)
    build(PICTURES, text(49500, 40), clip % 32)


def drop(*modalities: str, probability: float = 1.0) -> str:
    chances = ", ".join(f"{name}: 0.5" for name in modalities)
    return (
        f"data.synchronized=[{{kind: flip}}, {{kind: dropout, probability: {probability}, modalities: {{{chances}}}}}]"
    )


@pytest.mark.parametrize(
    "step", ["{kind: plain}", "{kind: accumulated, micro_batches: 2}", "{kind: cached, micro_batches: 2}"]
)
def test_modality_dropout_with_objectives_that_need_every_sample(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how = (SLIP, VIEWS, f"step={step}")
    build(PICTURES, *how, drop("image", "text"))
    monkeypatch.setattr(SimClrObjective, "accepts_absent", False)
    monkeypatch.setattr(MaeObjective, "accepts_absent", False)
    said = refused(PICTURES, *how, drop("image", "text"))
    assert said.startswith(
        "data.synchronized[1].modalities: got 'image', and objective.objectives.b (SimClrObjective) needs it of"
    )
    said = refused(MASKED, *MASKED_SMALL, f"step={step}", drop("image"))
    assert said.startswith(
        "data.synchronized[1].modalities: got 'image', and objective (MaeObjective) needs it of every sample"
    )
    build(PICTURES, *how, drop("text"))
    build(PICTURES, *how, drop("image", probability=0.0))
    build(PICTURES, f"step={step}", drop("image", "text"))


def test_accumulation_where_samples_may_lack_a_modality(shards: str, tmp_path: Path) -> None:
    small = (*MASKED_SMALL, shards, "save.every=1 steps", "schedule.warmup=0 steps", "log.trackers=[]")
    step = "step={kind: accumulated, micro_batches: 2}"
    assemble(MASKED, tmp_path, *small, step)
    with pytest.raises(RecipeError, match=r"accumulation over 2 .* where samples may lack \['image'\].*kind 'cached'"):
        assemble(MASKED, tmp_path, *small, step, "data.optional=[image]")


@pytest.fixture
def shards(tmp_path: Path) -> str:
    digit_scenes.write(tmp_path, train=8, validation=1, test=1, shards=1)
    return f"data.shards=[{tmp_path}/train]"


def assemble(recipe: Path, folder: Path, *overrides: str) -> None:
    loaded = load_recipe(recipe, [f"output={folder}", "batch_size=8", "duration=1 steps", "data.workers=0", *overrides])
    launch = loaded.training.launch()
    try:
        loaded.build(launch).state.stream.close()
    finally:
        launch.close()


def test_views_of_masked_objectives_that_do_not_fit_the_encoder(shards: str, tmp_path: Path) -> None:
    small = (*MASKED_SMALL, shards, "save.every=1 steps", "schedule.warmup=0 steps", "log.trackers=[]")
    assemble(MASKED, tmp_path, *small)
    for changes, sentence in (
        (["modalities.image.views.order.patch_size=32"], "got token orders [1, 49] from modalities.image.views.order"),
        (["modalities.image.size=192"], "got token orders [1, 144] from modalities.image.views.order, wanted [B, 196]"),
        (["objective.patch_values=300"], "patch_values: got 300, wanted 768"),
    ):
        with pytest.raises(RecipeError, match=re.escape(f"objective: {sentence}")):
            assemble(MASKED, tmp_path, *small, *changes)


def test_views_of_a_size_that_the_encoder_does_not_take(shards: str, tmp_path: Path) -> None:
    """Two global and two local crops in one run; sizes are tried on the encoder before the first step."""
    local = "modalities.image.views={crop: {kind: resized_crop}, local: {kind: simclr, size: %d, scale: [0.05, 0.4]}}"
    views = "view: crop, views: 2, local_view: local, local_views: 2"
    lejepa = f"objective={{kind: lejepa, modality: image, {views}, sigreg_weight: 0.05, embedding: 16, head: {HEAD}}}"
    settings = (
        ALONE,
        lejepa,
        "evaluators={}",
        "save.every=1 steps",
        "schedule.warmup=0 steps",
        "log.trackers=[]",
        shards,
    )
    assemble(PICTURES, tmp_path, *settings, local % 32)
    with pytest.raises(
        RecipeError, match=r"modalities\.image\.views\.local\.size: got 24, which the encoder does not take"
    ):
        assemble(PICTURES, tmp_path, *settings, local % 24)


ALONE = "encoders={image: {kind: vit, size: 64, patch_size: 16, width: 16, depth: 1, heads: 1}}"


@pytest.mark.parametrize(("mask", "wanted"), [("[8, 64]", None), ("[64, 8]", "64 x 8"), ("[16, 32]", "16 x 32")])
def test_masks_of_as_many_tokens_on_another_grid(mask: str, wanted: str | None, shards: str, tmp_path: Path) -> None:
    """Blocks of another grid are no blocks of the encoder's."""
    small = (
        "encoders.audio.width=16", "encoders.audio.depth=1", "encoders.audio.heads=1", "objective.targets.layers=1",
        "objective.predictor={kind: conv, width: 16, depth: 1, groups: 8}", "schedule.warmup=0 steps", "log.trackers=[]",
        "objective.draws=1", "save.every=1 steps", f"modalities.audio.views.mask.grid={mask}", shards,
    )  # fmt: skip
    if wanted is None:
        assemble(CONFIGS / "audio/eat_vit_b_16.yaml", tmp_path, *small)
        return
    said = f"modalities.audio.views.mask: got a grid of {wanted} tokens, wanted 8 x 64, that of encoders.audio"
    with pytest.raises(RecipeError, match=said):
        assemble(CONFIGS / "audio/eat_vit_b_16.yaml", tmp_path, *small)


TWO_VIEWS = f"modality: image, view: crop, embedding: 16, head: {HEAD}"
COMPARING = {
    "clip": [],
    "slip": [SLIP, VIEWS],
    "simclr": [ALONE, f"objective={{kind: simclr, {TWO_VIEWS}, temperature: 0.1}}"],
    "barlow_twins": [ALONE, f"objective={{kind: barlow_twins, {TWO_VIEWS}, redundancy_weight: 0.01}}"],
    "vicreg": [
        ALONE,
        f"objective={{kind: vicreg, {TWO_VIEWS}, invariance_weight: 25, variance_weight: 25, covariance_weight: 1}}",
    ],
    "simsiam": [ALONE, f"objective={{kind: simsiam, {TWO_VIEWS}, predictor: {HEAD}}}"],
    "lejepa": [ALONE, f"objective={{kind: lejepa, {TWO_VIEWS}, views: 2, sigreg_weight: 0.05}}"],
}


@pytest.mark.parametrize("objective", COMPARING)
def test_a_batch_of_one_sample_that_has_nothing_to_be_compared_with(
    objective: str, shards: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="batch_size: got 1, wanted at least 2: the objective compares the samples"):
        assemble(PICTURES, tmp_path, *COMPARING[objective], shards, "batch_size=1")


def test_shards_of_one_sample_that_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    """No smaller batch would mend it, which a message on the batch would advise."""
    digit_scenes.write(tmp_path, train=1, validation=1, test=1, shards=1)
    with pytest.raises(DataError, match=r"the shards hold 1 sample\(s\), wanted at least 2: the objective compares"):
        assemble(PICTURES, tmp_path, *COMPARING["simclr"], f"data.shards=[{tmp_path}/train]")


def test_a_batch_of_one_sample_for_an_objective_that_compares_none(shards: str, tmp_path: Path) -> None:
    one = ("batch_size=1", "save.every=1 steps", "schedule.warmup=0 steps", "log.trackers=[]")
    assemble(MASKED, tmp_path, *MASKED_SMALL, shards, *one)


@pytest.mark.parametrize(
    ("recipe", "name", "size", "small"),
    [(PICTURES, "image", 64, ()), (VIDEOS, "video", 32, SMALL)],
    ids=["pictures", "clips"],
)
def test_stages_of_resolution_that_are_larger(recipe: Path, name: str, size: int, small: tuple[str, ...]) -> None:
    stages = f"resolution.{name}=[{{size: 16, until: 50 percent}}, {{size: %d, until: 80 percent}}]"
    sentence = refused(recipe, *small, stages % (size + 16))
    assert f"resolution.{name}: got a stage of {size + 16} pixels, and modalities.{name}.size is {size}" in sentence
    assert len(load_recipe(recipe, [*small, stages % size]).training.resolution[name]) == 2


def test_all_contradictions_of_keys_are_said_at_once() -> None:
    stage = "resolution={image: [{size: 640, until: 50 percent}]}"
    stranger = "encoders.sound={kind: resnet, size: 64, layers: [1, 1], channels: 8, pool: mean}"
    with pytest.raises(RecipeError) as caught:
        load_recipe(PICTURES, [stage, stranger])
    assert "encoders.sound has no modality of that name" in str(caught.value)
    assert "resolution.image: got a stage of 640 pixels" in str(caught.value)


def test_compiled_encoders_keep_no_single_operations() -> None:
    selective = {"text": TextTransformerConfig(checkpointing="selective")}
    with pytest.raises(ValueError, match=r"encoders\.text\.checkpointing: got selective with compile"):
        check_compile(True, selective)
    check_compile(False, selective)
    check_compile(True, {"text": TextTransformerConfig(checkpointing=True)})
