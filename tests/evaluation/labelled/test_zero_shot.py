"""Zero-shot: known models score what they must, open_clip's classifier is ours, and bad lists are refused by their place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.evaluation import prompts
from mmssl.evaluation.labelled.zero_shot import ZeroShotConfig, zero_shot_answers
from mmssl.evaluation.prompts import TEMPLATES, build_classifier, fill_template
from tests.evaluation.world import (
    NAMES,
    collected,
    colour_sample,
    colour_shards,
    configured,
    items,
    knowing_model,
    modalities,
    write_shard,
)

TEN = [f"c{i}" for i in range(10)]


def run(embeddings: Tensor, labels: Tensor, classifier: Tensor) -> dict[str, Any]:
    names = [f"c{i}" for i in range(len(classifier))]
    data = collected(len(labels), m=items(embeddings), y=items(labels))
    answers = zero_shot_answers(data, "m", "y", classifier, names)
    return answers.scores() | {"tie_rate": float(answers.predictions.tied.double().mean())}


def test_a_perfect_model_scores_one() -> None:
    labels = torch.arange(40) % 10
    scores = run(torch.eye(10)[labels], labels, torch.eye(10))
    assert (scores["acc1"], scores["acc5"], scores["mean_per_class_recall"], scores["tie_rate"]) == (1, 1, 1, 0)
    assert scores["acc1_ci95_low"] < 1 == scores["acc1_ci95_high"]


def test_a_random_model_scores_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 10
    scores = run(torch.randn(4000, 16, generator=generator), labels, torch.randn(10, 16, generator=generator))
    assert scores["acc1"] == pytest.approx(0.1, abs=0.02)
    assert scores["acc5"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("collapsed", ["samples", "prompts", "both"])
def test_a_collapsed_model_scores_chance(collapsed: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    point = F.normalize(torch.randn(48, generator=generator), dim=0)
    embeddings = torch.randn(200, 48, generator=generator) if collapsed == "prompts" else point.expand(200, -1)
    weights = torch.randn(10, 48, generator=generator) if collapsed == "samples" else point.expand(10, -1)
    scores = run(embeddings, labels, weights)
    assert scores["acc1"] == scores["mean_per_class_recall"] == pytest.approx(0.1)
    assert scores["acc5"] == pytest.approx(0.5)
    assert scores["tie_rate"] == (0 if collapsed == "samples" else 1)


def test_rows_of_samples_have_cosines_and_probabilities_of_the_predicted_and_of_the_true_class() -> None:
    embeddings, labels = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([0, 0])
    data = collected(2, m=items(embeddings), y=items(labels))
    columns = zero_shot_answers(data, "m", "y", torch.eye(2), ["a", "b"], 10.0).tables()["samples"].columns
    assert columns["predicted"] == ["b", "a"]
    assert columns["score"] == pytest.approx([0.8, 1])
    assert columns["true_score"] == pytest.approx([0.6, 1])
    assert columns["probability"] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-10))])
    assert columns["true_probability"] == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(-10))])
    without = zero_shot_answers(data, "m", "y", torch.eye(2), ["a", "b"]).tables()["samples"].columns
    assert "probability" not in without, "the model has no logit scale"


@pytest.mark.parametrize("classes", [40, 200, 201])
def test_confusions_say_how_many_there_are_and_give_the_whole_matrix(classes: int) -> None:
    """Each class has three samples: one is right, two are taken for the two classes behind it."""
    labels = torch.arange(classes).repeat(3)
    rows = torch.eye(classes)[(labels + torch.arange(3).repeat_interleave(classes)) % classes]
    data = collected(len(labels), m=items(rows), y=items(labels))
    names = [f"c{i}" for i in range(classes)]
    answers = zero_shot_answers(data, "m", "y", torch.eye(classes), names)
    tables = answers.tables()
    assert answers.scores()["confused_pairs"] == 2 * classes
    assert len(tables["confusions"].columns["n"]) == min(100, 2 * classes)
    assert ("confusion_matrix" in tables) == (classes <= 200)
    if classes <= 200:
        matrix = torch.zeros(classes, classes)
        columns = tables["confusion_matrix"].columns
        for true, predicted, n in zip(*(columns[name] for name in ("class", "predicted", "n")), strict=True):
            matrix[names.index(str(true)), names.index(str(predicted))] = float(n or 0)
        expected = sum((torch.eye(classes).roll(shift, 1) for shift in range(3)), torch.zeros(classes, classes))
        assert torch.equal(matrix, expected)


def test_samples_without_a_label_are_excluded_and_counted() -> None:
    embeddings = torch.eye(10)
    labels = items(torch.tensor([2, 7]), owner=torch.tensor([2, 7]))
    answers = zero_shot_answers(collected(10, m=items(embeddings), y=labels), "m", "y", torch.eye(10), TEN)
    assert (answers.scores()["n"], answers.scores()["acc1"], answers.keys) == (2, 1, ["key2", "key7"])


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_that_are_no_class_are_refused_by_key(label: int) -> None:
    with pytest.raises(DataError, match=rf"'key1' .* label {label}, wanted 0 \.\.\. 9"):
        run(torch.eye(10)[:3], torch.tensor([0, label, 2]), torch.eye(10))


def test_embeddings_that_are_not_finite_are_refused_by_key() -> None:
    embeddings = torch.eye(10)
    embeddings[4, 2] = torch.nan
    with pytest.raises(NumericError, match="'key4'"):
        run(embeddings, torch.arange(10), torch.eye(10))


def test_no_label_at_all_is_an_error() -> None:
    data = collected(2, m=items(torch.eye(2)[:1]), y=items(torch.tensor([1]), owner=torch.tensor([1])))
    with pytest.raises(DataError, match="no sample has both 'm' and 'y': of 2, 1 have 'm' and 1 have 'y'"):
        zero_shot_answers(data, "m", "y", torch.eye(2), ["a", "b"])


class FakeClip(nn.Module):
    """What open_clip's builder asks of a model: sentences stand for themselves as ids."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors

    def encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        rows = self.vectors[ids]
        return F.normalize(rows, dim=-1) if normalize else rows


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_classifier_is_open_clips(batch_size: int) -> None:
    import open_clip

    names, templates = [f"thing {i}" for i in range(11)], ("a {}.", "the {}!", "{} here")
    sentences = [fill_template(template, name) for name in names for template in templates]
    ids = {sentence: i for i, sentence in enumerate(sentences)}
    vectors = torch.randn(len(sentences), 24, generator=torch.Generator().manual_seed(0)) * 3

    def tokenize(texts: Sequence[str]) -> Tensor:
        return torch.tensor([ids[text] for text in texts])

    expected = open_clip.build_zero_shot_classifier(
        FakeClip(vectors),
        tokenizer=tokenize,
        classnames=names,
        templates=templates,
        num_classes_per_batch=4,
        device="cpu",
    )
    ours = build_classifier(lambda texts: vectors[tokenize(texts)], names, templates, batch_size)
    assert (ours.T - expected).abs().max() < 1e-6
    legacy = open_clip.build_zero_shot_classifier_legacy(FakeClip(vectors), tokenize, names, templates, device="cpu")
    assert (ours.T - legacy).abs().max() < 1e-6


def test_placeholders_are_filled_and_other_braces_stay() -> None:
    assert fill_template("a {} and a {c} in {braces}", "{x}") == "a {x} and a {x} in {braces}"


def make(tmp_path: Path, **values: Any) -> ZeroShotConfig:
    common = {"shards": [str(tmp_path)], "modality": "picture", "prompts": "words", "classnames": list(NAMES)}
    return configured(ZeroShotConfig, **{**common, **values})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"templates": ["a {}", "no place"]}, r"templates\[1\]: 'no place'"),
        ({"templates": []}, "got no template"),
        ({"classnames": ["a", "b", " A "]}, r"classnames\[2\].*again \(also at classnames\[0\]\)"),
        ({"classnames": ["a"]}, "at least two"),
        ({"classnames": ["a", " "]}, r"classnames\[1\]: got an empty class name"),
    ],
)
def test_bad_lists_are_refused_in_the_recipe(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make(tmp_path, **values)


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("templates", "a {}\na photo\n", "bad.txt, line 2: 'a photo'"),
        ("templates", "", "got no template"),
        ("classnames", "one\ntwo\n\nthree\n", "bad.txt, line 3: got an empty class name"),
        ("classnames", "one\ntwo\nOne\n", r"bad.txt, line 3.*again \(also at .*bad.txt, line 1\)"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path: Path, field: str, text: str, says: str) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(RecipeError, match=says):
        make(tmp_path, **{field: str(tmp_path / "bad.txt")}).build(modalities())


def test_a_missing_template_file_names_the_lists_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"it does not exist.*plain, simple or openai, did you mean 'simple'"):
        make(tmp_path, templates="smple").build(modalities())


def test_class_names_that_are_no_file_say_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="`classnames`: got 'cat', which is no file; wanted a file of class names"):
        make(tmp_path, classnames="cat").build(modalities())
    nearby = make(tmp_path, classnames=None)
    write_shard(tmp_path / "0.tar", [])
    with pytest.raises(RecipeError, match=r"`classnames`: got none, and there is no classnames\.txt beside the shards"):
        nearby.build(modalities())
    remote = nearby.model_copy(update={"shards": ("https://me:pass@host/{0..3}.tar",)})
    message = r"got none, and beside remote shards, such as https://[^p]*host/\{0\.\.3\}\.tar, no classnames\.txt is looked for"
    with pytest.raises(RecipeError, match=message):
        remote.build(modalities())


@pytest.mark.parametrize("text", ['["red", "green"]', '{"1": "green", "0": "red"}', "0: 'red',\n1: 'green',"])
def test_class_names_are_read_as_they_are_published(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.json").write_text(text)
    assert make(tmp_path, classnames=str(tmp_path / "names.json")).build(modalities()).prompts.names == ("red", "green")


def test_class_names_are_compared_with_those_beside_the_shards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make(tmp_path, shards=colour_shards(tmp_path, 16))
    stored = tmp_path / "classnames.txt"
    stored.write_text("\n".join(NAMES[:-1]) + "\nanother\n")
    dict(config.build(modalities()).evaluate(knowing_model()))
    assert f"class 7 is {NAMES[7]!r} in `classnames` and 'another' in {stored}" in caplog.text
    stored.write_text("\n".join(reversed(NAMES)))
    with pytest.raises(DataError, match="the same names in another order; use the order of"):
        dict(config.build(modalities()).evaluate(knowing_model()))


def test_prompts_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="prompts: got modality 'picture', wanted one of kind text"):
        make(tmp_path, prompts="picture").build(modalities())


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("red \ngreen\n\n", encoding="utf-8-sig")
    (tmp_path / "templates.txt").write_text("a {c}\n{}")
    evaluator = make(tmp_path, classnames=str(tmp_path / "names.txt"), templates=str(tmp_path / "templates.txt")).build(
        modalities()
    )
    assert evaluator.prompts.names == ("red", "green")
    assert evaluator.prompts.templates == ("a {c}", "{}")


def test_the_shipped_templates_can_be_used() -> None:
    for name, templates in TEMPLATES.items():
        assert len({fill_template(template, name) for template in templates}) == len(templates)
        assert all(name in fill_template(template, name) for template in templates)


def test_from_shards_to_scores(tmp_path: Path) -> None:
    config = make(tmp_path, shards=colour_shards(tmp_path, 16), labels="label", batch_size=5, every="10 steps")
    scores = dict(config.build(modalities()).evaluate(knowing_model()))
    assert scores["acc1"] == 1
    assert (scores["n"], scores["n_excluded"], scores["classes"]) == (13, 3, 8)


def test_a_label_beyond_the_names_is_refused_from_shards(tmp_path: Path) -> None:
    key, fields = colour_sample(3)
    shard = write_shard(tmp_path / "a.tar", [colour_sample(0), (key, {**fields, "cls": b"8"})])
    with pytest.raises(DataError, match=r"'sample003'.*label 8"):
        list(make(tmp_path, shards=[str(shard)]).build(modalities()).evaluate(knowing_model()))


def test_a_model_without_shared_space_is_refused(tmp_path: Path) -> None:
    model = knowing_model()
    del model.heads["words"]
    with pytest.raises(ValueError, match="no shared space for 'words'"):  # before any shard is opened
        list(make(tmp_path, shards=["nowhere"]).build(modalities()).evaluate(model))


@pytest.mark.parametrize("together", [6, 65536])
def test_prompts_are_embedded_by_length_and_come_back_in_order(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "SORTED_TOGETHER", together)
    names, templates = ["x" * (1 + 5 * i % 7) for i in range(7)], ("{}", "a long one of {}")
    batches: list[list[int]] = []

    def embed(sentences: Sequence[str]) -> Tensor:
        batches.append([len(sentence) for sentence in sentences])
        return torch.tensor([[float(len(sentence)), 1.0] for sentence in sentences])

    rows = build_classifier(embed, names, templates, batch_size=4)
    for name, row in zip(names, rows, strict=True):
        both = F.normalize(torch.tensor([[len(name), 1.0], [len(name) + 14, 1.0]]), dim=-1)
        torch.testing.assert_close(row, F.normalize(both.mean(0), dim=-1))
    if together > 6:
        assert all(a[-1] <= b[0] for a, b in pairwise(batches))


def test_the_number_of_classes_is_checked_when_the_shards_are_opened(tmp_path: Path) -> None:
    shards = colour_shards(tmp_path / "shards", 40)

    def opening(names: Sequence[str]) -> None:
        config = configured(ZeroShotConfig, shards=shards, modality="picture", prompts="words", classnames=names)
        config.build(modalities()).open()

    opening(NAMES)
    with pytest.raises(DataError, match=r"has the label 7, wanted 0 ... 6 for 7 class names: check `classnames`"):
        opening(NAMES[:-1])
    (tmp_path / "shards" / "classnames.txt").write_text("\n".join(NAMES))
    opening(NAMES)
    with pytest.raises(DataError, match="the same names in another order"):
        opening(NAMES[::-1])


def test_corruptions_are_measured_at_five_severities(tmp_path: Path) -> None:
    config = make(tmp_path, shards=colour_shards(tmp_path, 16), corruptions=["contrast", "jpeg"])
    with config.build(modalities()) as evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
        table = evaluator.tables["corruptions"].columns
    assert list(table["severity"]) == [1, 2, 3, 4, 5] * 2
    assert scores["acc1"] == scores["acc1_contrast_1"] == 1, "contrast leaves the mean colour"
    assert scores["acc1_corrupted"] == pytest.approx(sum(float(share or 0) for share in table["acc1"]) / 10)
    assert scores["acc1_kept"] == scores["acc1_corrupted"]
    with pytest.raises(RecipeError, match=r"corruptions: got 'jpg' for 'picture', did you mean 'jpeg'"):
        make(tmp_path, corruptions=["jpg"]).build(modalities())
