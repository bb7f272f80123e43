"""Robustness: which samples are corrupted, what is said of them; other sizes and lengths; averages over views."""

from __future__ import annotations

import io
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import RecipeError
from mmssl.core.evaluator import Score
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.captions.captions import Captions
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.series import SeriesConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import Modality
from mmssl.evaluation.corrupted import CorruptedShards, Figure, changed_share
from mmssl.evaluation.labelled.attentive_probe import AttentiveProbeConfig
from mmssl.evaluation.labelled.knn import KnnConfig
from mmssl.evaluation.labelled.linear_probe import LinearProbeConfig
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.evaluation.robustness import AveragedModel, RobustConfig, five_crops, views_to_average
from mmssl.evaluation.statistics import wilson
from tests.evaluation.world import colour_shards, configured, knowing_model, modalities, model, write_shard

USUAL: dict[str, Any] = {"modality": "picture", "batch_size": 16}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("shards")
    return {"train_shards": colour_shards(folder / "train", 40), "shards": colour_shards(folder / "test", 24)}


def settings(kind: type[Any], shards: dict[str, list[str]], **values: Any) -> Any:
    return configured(kind, **{**shards, **USUAL, **values})


def measured(config: Any, encoder: EmbeddingModel | None = None) -> tuple[dict[str, Score], Any]:
    with config.build(modalities()) as evaluator:
        return dict(evaluator.evaluate(encoder or knowing_model())), evaluator.tables


def test_a_probe_is_fitted_on_clean_samples_and_measured_on_corrupted_ones(shards: dict[str, list[str]]) -> None:
    """Shapes hide the colour; contrast leaves the mean colour, which is all that the model sees."""
    config = settings(LinearProbeConfig, shards, corruptions=["geometric_shapes", "contrast"], penalties=[0.01])
    scores, tables = measured(config)
    clean, _ = measured(settings(LinearProbeConfig, shards, penalties=[0.01]))
    assert {name: value for name, value in scores.items() if name in clean} == clean
    assert scores["acc1"] == scores["acc1_contrast_5"] == 1
    assert float(scores["acc1_geometric_shapes_5"] or 0) < 1
    columns = tables["corruptions"].columns
    assert list(columns["corruption"]) == ["geometric_shapes"] * 5 + ["contrast"] * 5
    assert list(columns["severity"]) == [1, 2, 3, 4, 5] * 2
    assert scores["acc1_corrupted"] == pytest.approx(np.mean(columns["acc1"]))
    assert scores["acc1_kept"] == scores["acc1_corrupted"]
    assert set(columns["acc1_n"]) == {20}
    for kind, part in (("geometric_shapes", slice(0, 5)), ("contrast", slice(5, 10))):
        assert scores[f"acc1_{kind}"] == pytest.approx(np.mean(columns["acc1"][part]))
    for name in ("acc1_geometric_shapes", "acc1_corrupted", "acc1_kept"):
        low, high = scores[f"{name}_ci95_low"], scores[f"{name}_ci95_high"]
        assert low < scores[name] < high  # type: ignore[operator]
    assert (scores["acc1_contrast_ci95_low"], scores["acc1_contrast_ci95_high"]) == wilson(20, 20)
    assert all(
        low <= x <= high
        for low, x, high in zip(*(columns[f"acc1{part}"] for part in ("_ci95_low", "", "_ci95_high")), strict=True)
    )


def test_means_under_corruption_are_of_samples_that_are_drawn_together() -> None:
    """Half of 40 samples are right under all corruptions, half under none: as wide as one share of 40, not of 400."""
    outcomes = (torch.arange(40) % 2).double()
    figure = Figure(0.5, 0.4, 0.6, 40, [*map(str, range(40))], outcomes)
    corrupted = CorruptedShards.__new__(CorruptedShards)
    each = [(kind, severity) for kind in ("a", "b") for severity in range(1, 6)]
    corrupted._each = dict.fromkeys(each, ("picture", Nothing()))  # type: ignore[arg-type]
    before = {"picture": torch.zeros(40, dtype=torch.int64)}
    clean = Figure(1.0, 0.9, 1.0, 40, figure.keys, torch.ones(40))
    scores, _ = corrupted.measure(lambda shards: {"acc1": figure}, {"acc1": clean}, before)
    for name in ("acc1_a", "acc1_corrupted", "acc1_kept"):
        low, high = scores[f"{name}_ci95_low"], scores[f"{name}_ci95_high"]
        assert scores[name] == 0.5
        assert high - low == pytest.approx(2 * 1.96 * 0.5 / 40**0.5, abs=0.06)  # type: ignore[operator]
    same, _ = corrupted.measure(lambda shards: {"acc1": figure}, {"acc1": figure}, before)
    assert (same["acc1_kept"], same["acc1_kept_ci95_low"], same["acc1_kept_ci95_high"]) == (1, 1, 1), "sample by sample"
    assert corrupted.measure(lambda shards: {"acc1": figure}, {}, before)[0]["acc1_kept"] is None
    rare = Figure(0.225, 0.1, 0.4, 40, figure.keys, (torch.arange(40) < 9).double())
    few, _ = corrupted.measure(lambda shards: {"acc1": figure}, {"acc1": rare}, before)
    assert few["acc1_kept"] == pytest.approx(0.5 / 0.225)
    assert "acc1_kept_ci95_low" not in few, "some draws have none of nine right ones"


class Nothing:
    """Shards that are not there; all of their inputs are changed."""

    inputs = MappingProxyType({"picture": torch.ones(40, dtype=torch.int64)})

    def close(self) -> None:
        """Nothing to close."""


class Shift(nn.Module):
    """Moves embeddings a little, so that none is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([0.1, 0.2, 0.05])


def test_retrieval_is_measured_with_corrupted_texts_and_pictures(shards: dict[str, list[str]]) -> None:
    pair = {"shards": shards["shards"], "pair": ["picture", "words"], "resamples": 100}
    knowing = knowing_model()
    knowing.heads["words"] = Shift()
    scores, tables = measured(configured(RetrievalConfig, **pair, corruptions=["typos", "contrast"]), knowing)
    clean, _ = measured(configured(RetrievalConfig, **pair), knowing)
    assert {name: value for name, value in scores.items() if name in clean} == clean
    for way in ("picture_to_words", "words_to_picture"):
        assert scores[f"{way}_R@1_contrast_1"] == scores[f"{way}_R@1"]
        low, mean, high = (float(scores[f"{way}_R@1_typos{end}"] or 0) for end in ("_ci95_low", "", "_ci95_high"))
        assert low < mean < high
        assert mean < float(scores[f"{way}_R@1"] or 0)
        assert float(scores[f"{way}_R@1_typos_5"] or 0) < float(scores[f"{way}_R@1"] or 0), (
            "a word with a typo is no colour"
        )
    assert list(tables["corruptions"].columns["corruption"]) == ["typos"] * 5 + ["contrast"] * 5


def test_a_corruption_that_changes_no_input_has_no_score(
    shards: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """CLIP's tokenizer makes lower case, so that capitals change no token; typos change every caption."""
    pair = {"shards": shards["shards"], "pair": ["picture", "words"], "resamples": 100}
    knowing = knowing_model()
    knowing.heads["words"] = Shift()
    scores, tables = measured(configured(RetrievalConfig, **pair, corruptions=["casing", "typos"]), knowing)
    alone, _ = measured(configured(RetrievalConfig, **pair, corruptions=["typos"]), knowing)
    assert scores["corruptions_without_effect"] == "casing 1, 2, 3, 4, 5"
    assert "changed no input, and have no score therefore (with severities): casing 1, 2, 3, 4, 5" in caplog.text
    columns = tables["corruptions"].columns
    assert list(columns["changed"]) == [0] * 5 + [1] * 5
    for metric in ("picture_to_words_R@1", "words_to_picture_R@1"):
        assert scores[f"{metric}_casing_3"] is None
        assert list(columns[metric])[:5] == [None] * 5
        assert {name: scores[f"{metric}_{name}"] for name in ("corrupted", "kept", "typos_5")} == {
            name: alone[f"{metric}_{name}"] for name in ("corrupted", "kept", "typos_5")
        }
    assert "corruptions_without_effect" not in alone
    nothing, _ = measured(configured(RetrievalConfig, **pair, corruptions=["casing"]), knowing)
    assert (nothing["picture_to_words_R@1_corrupted"], nothing["picture_to_words_R@1_kept"]) == (None, None)


def test_the_share_of_changed_inputs() -> None:
    before = torch.tensor([1, 2, 3, 4])
    assert changed_share(before, torch.tensor([1, 2, 0, 4])) == 0.25
    assert changed_share(before, before.clone()) == 0
    assert changed_share(before, before[:3]) == 1, "other samples"


def test_brightness_leaves_white_pictures(tmp_path: Path) -> None:
    """Half of the samples are changed: the score stands, and the table says of how many it is."""
    whites = [("a", (255, 255, 255)), ("b", (90, 90, 90)), ("c", (255, 255, 255)), ("d", (90, 90, 90))]
    samples = [(key, {"png": flat(colour), "cls": str(int(colour[0] > 90)).encode()}) for key, colour in whites]
    folder = [str(write_shard(tmp_path / "0.tar", samples))]
    config = configured(
        KnnConfig, shards=folder, train_shards=folder, modality="picture", ks=[1], corruptions=["brightness"]
    )
    scores, tables = measured(config)
    assert list(tables["corruptions"].columns["changed"]) == [0.5] * 5
    assert scores["acc1_brightness_1"] == 1
    assert "corruptions_without_effect" not in scores


def flat(colour: tuple[int, int, int]) -> bytes:
    """A picture of exactly one colour."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def test_names_of_several_corruptions(shards: dict[str, list[str]]) -> None:
    both = modalities()

    def found(*kinds: str) -> set[str]:
        config = configured(RobustConfigured, shards=["x"], corruptions=kinds)
        return {kind for kind, _ in config.corrupted_modalities(both, ("picture", "words"))}

    assert found("unnatural", "casing") == {
        "mosaic", "glitched", "vertical_lines", "geometric_shapes", "stickers", "luminance_checkerboard", "casing",
    }  # fmt: skip
    assert found("all") == found("common", "unnatural") | {
        "typos", "casing", "deleted_letters", "doubled_letters", "swapped_letters",
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"corruptions: got 'reverb' for 'picture' or 'words', wanted \['brightness'"):
        found("reverb")
    with pytest.raises(RecipeError, match="corruptions: got 'all' for 'label', wanted none"):
        configured(RobustConfigured, shards=["x"], corruptions=["all"]).corrupted_modalities(both, ("label",))


class RobustConfigured(RobustConfig):
    """Settings alone."""

    def build(self, modalities: Any) -> Any:
        raise NotImplementedError


def viewed(given: dict[str, Modality], **values: Any) -> dict[str, Modality]:
    changed: dict[str, Modality] = configured(RobustConfigured, shards=["x"], **values).viewed(given, [*given])
    return changed


def test_sizes_and_lengths_are_those_asked_for() -> None:
    given: dict[str, Modality] = {
        "picture": configured(ImageConfig, size=32).build("picture"),
        "clip": configured(VideoConfig, size=16, frames=8, seconds=2.0).build("clip"),
        "sound": configured(AudioConfig, rate=8000, seconds=1.0).build("sound"),
        "series": configured(SeriesConfig, axes=["channel", "time"], rate=100, seconds=1.0, channels=2).build("series"),
    }
    changed = viewed(given, sizes={"picture": 48, "clip": 24}, lengths={"clip": 0.5, "sound": 0.25, "series": 2})
    shapes = {name: tuple(one.view("eval").blank().shape) for name, one in changed.items()}
    assert shapes == {"picture": (3, 48, 48), "clip": (4, 3, 24, 24), "sound": (2, 2000), "series": (2, 200)}
    assert {name: tuple(one.view("eval").blank().shape) for name, one in given.items()} == {
        "picture": (3, 32, 32), "clip": (8, 3, 16, 16), "sound": (2, 8000), "series": (2, 100),
    }  # fmt: skip
    wave = np.arange(8000, dtype=np.float32)[None] / 16000
    middle = changed["sound"].view("eval")(wave, {})
    assert torch.equal(middle, given["sound"].view("eval")(wave, {})[:, 3000:5000])
    assert tuple(viewed(given, average={"picture": "five_crops"})["picture"].view("eval").blank().shape) == (3, 37, 37)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sizes": {"pictures": 32}}, "sizes: got 'pictures', did you mean 'picture'"),
        ({"sizes": {"words": 32}}, "sizes.words: got 32 pixels, and views of this modality have no height and width"),
        (
            {"lengths": {"picture": 0.5}},
            "lengths.picture: got a length of 0.5, and views of this modality have no length",
        ),
        (
            {"lengths": {"words": 1.5}},
            "lengths.words: got a length of 1.5, and captions can only be cut: wanted at most 1",
        ),
        ({"average": {"words": "flip"}}, "average.words: got flip, and its views are no pictures"),
    ],
)
def test_what_has_no_such_views_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        viewed(modalities(), **values)


def test_captions_are_cut_after_their_first_words(shards: dict[str, list[str]]) -> None:
    words = modalities()["words"]
    cut = viewed({"words": words}, lengths={"words": 0.5})["words"].view("eval")
    given = Captions(["a red square on a wall", "red  wall", "square"])
    expected = words.view("eval")(Captions(["a red square", "red", "square"]), {})
    assert torch.equal(cut(given, {}), expected)
    assert torch.equal(
        viewed({"words": words}, lengths={"words": 1})["words"].view("eval")(given, {}), words.view("eval")(given, {})
    )
    says = "lengths: got 'words', wanted what is measured: \\['picture'\\]"
    with pytest.raises(RecipeError, match=says):
        settings(LinearProbeConfig, shards, lengths={"words": 0.5}).build(modalities())


def test_an_attentive_probe_averages_nothing(shards: dict[str, list[str]]) -> None:
    with pytest.raises(RecipeError, match=r"average: .* reads the tokens of one"):
        settings(AttentiveProbeConfig, shards, average={"picture": "flip"}).build(modalities())


def left(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> how bright the left third and the upper third are, and one."""
    y = x.float() / 255
    third = x.shape[-1] // 3
    return torch.stack([y[..., :third].mean((1, 2, 3)), y[..., :third, :].mean((1, 2, 3)), torch.ones(len(x))], 1)


def test_averages_are_means_over_the_views() -> None:
    x = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = model(3, picture=left)
    crops = [x[..., r : r + 14, c : c + 14] for r, c in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))]
    assert all(torch.equal(a, b) for a, b in zip(five_crops(x), crops, strict=True))
    views = {"flip": [x, x.flip(-1)], "five_crops": crops, "ten_crops": crops + [one.flip(-1) for one in crops]}
    for kind, some in views.items():
        averaged = AveragedModel(plain, {"picture": kind})  # type: ignore[dict-item]
        expected = torch.stack([left(one) for one in some]).mean(0)
        assert torch.allclose(averaged.features("picture", x), expected, atol=1e-6)
        mean = torch.stack([F.normalize(left(one), dim=1) for one in some]).mean(0)
        assert torch.allclose(averaged.embed("picture", x), F.normalize(mean, dim=1), atol=1e-6)
        both = averaged.features_and_embeddings("picture", x)
        assert torch.equal(both[0], averaged.features("picture", x))
        assert torch.equal(both[1], averaged.embed("picture", x))
        assert len(views_to_average(kind, x)) == len(some)  # type: ignore[arg-type]
    assert torch.equal(AveragedModel(plain, {}).features("picture", x), plain.features("picture", x))


def test_the_models_modes_and_weights_are_left_alone() -> None:
    plain = EmbeddingModel(model(3, picture=left).encoders, {"picture": nn.Identity()}).eval()  # type: ignore[arg-type]
    averaged = AveragedModel(plain, {"picture": "flip"})
    assert not plain.encoders["picture"].training
    assert averaged.encoders["picture"] is plain.encoders["picture"]


def test_mirror_images_and_crops_reach_the_scores(shards: dict[str, list[str]]) -> None:
    for kind in ("flip", "ten_crops"):
        scores, _ = measured(settings(KnnConfig, shards, ks=[3], average={"picture": kind}))
        assert scores["acc1"] == 1
    scores, _ = measured(settings(KnnConfig, shards, ks=[3], sizes={"picture": 16}))
    assert scores["acc1"] == 1
