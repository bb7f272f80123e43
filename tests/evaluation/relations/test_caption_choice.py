"""The files of ARO, SugarCrepe and Winoground as published, on pictures and captions of colours; Winoground's three scores."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.evaluation.relations.caption_choice import (
    WINOGROUND,
    CaptionChoiceConfig,
    choice_scores,
    winoground_outcomes,
    winoground_scores,
)
from mmssl.evaluation.relations.caption_files import Example, read_examples
from mmssl.evaluation.statistics import wilson
from tests.distributed.processes import Processes
from tests.evaluation.complete import require_complete
from tests.evaluation.world import COLOURS, configured, knowing_model, modalities, model, png

NAMES = ("red", "green", "blue", "yellow")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / f"{name}.png").write_bytes(png(COLOURS[name]))
    halves = Image.new("RGB", (16, 8), COLOURS["red"])
    halves.paste(COLOURS["blue"], (8, 0, 16, 8))
    file = io.BytesIO()
    halves.save(file, "PNG")
    (tmp_path / "halves.png").write_bytes(file.getvalue())
    return tmp_path


def sugarcrepe(folder: Path, name: str, pairs: Sequence[tuple[str, str]]) -> Path:
    """As published: an object of numbered entries; each a picture, its caption and a false one."""
    entries = {
        str(i): {"filename": f"{true}.png", "caption": f"a {true} thing", "negative_caption": f"a {false} thing"}
        for i, (true, false) in enumerate(pairs)
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(entries))
    return path


def winoground(folder: Path, pairs: Sequence[tuple[str, str, str, str]]) -> Path:
    """As published: an entry a line, names of pictures without an ending; (picture, picture, caption, caption)."""
    lines = [
        json.dumps(
            {"id": i, "image_0": a, "image_1": b, "caption_0": c, "caption_1": d, "collapsed_tag": f"Tag{i % 2}"}
        )
        for i, (a, b, c, d) in enumerate(pairs)
    ]
    path = folder / "examples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def build(folder: Path, files: Sequence[Path], **settings: Any) -> Any:
    config = {"files": [str(f) for f in files], "pictures": str(folder), "pair": ["picture", "words"], "batch_size": 2}
    return configured(CaptionChoiceConfig, **{**config, **settings}).build(modalities())


def measure(folder: Path, files: Sequence[Path], to: EmbeddingModel | None = None, **settings: Any) -> dict[str, Any]:
    with build(folder, files, **settings) as evaluator:
        return dict(evaluator.evaluate(to or knowing_model()))


def collapsed() -> EmbeddingModel:
    return model(3, picture=lambda x: torch.ones(len(x), 3), words=lambda x: torch.ones(len(x), 3))


def test_sugarcrepe(folder: Path) -> None:
    files = [
        sugarcrepe(folder, "swap_att", [("red", "blue"), ("green", "red"), ("blue", "green")]),
        sugarcrepe(folder, "add_obj", [("red", "green"), ("yellow", "blue")]),
    ]
    scores = measure(folder, files)
    assert [scores[name] for name in ("acc", "acc_swap_att", "acc_add_obj", "macro_acc")] == [1, 1, 1, 1]
    assert (scores["n"], scores["n_pictures"], scores["tie_rate"], scores["acc_chance"]) == (5, 4, 0, 0.5)
    turned = knowing_model()
    turned.encoders["words"].table.data.neg_()
    assert measure(folder, files, turned)["acc"] == 0
    chance = measure(folder, files, collapsed())
    assert (chance["acc"], chance["acc_swap_att"], chance["tie_rate"]) == (0.5, 0.5, 1)


def test_aro_cuts_its_pictures_and_has_a_mean_over_relations(folder: Path) -> None:
    entries = [
        {
            "image_path": "halves.png", "bbox_x": x, "bbox_y": 0, "bbox_w": 8, "bbox_h": 8,
            "true_caption": f"the {true} thing", "false_caption": f"the {false} thing", "relation_name": relation,
        }
        for x, true, false, relation in [
            (0, "red", "blue", "left of"), (8, "blue", "red", "left of"), (8, "red", "blue", "left of"), (0, "red", "blue", "on"),
        ]
    ]  # fmt: skip
    path = folder / "visual_genome_relation.json"
    path.write_text(json.dumps(entries))
    with build(folder, [path]) as evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
        require_complete("aro", scores, evaluator.headlines)
        kinds = evaluator.tables["kinds"].columns
    assert (scores["acc"], scores["macro_acc"], scores["n"]) == (0.75, pytest.approx((2 / 3 + 1) / 2), 4)
    assert (kinds["kind"], kinds["n"], kinds["value"]) == (["left of", "on"], [3, 1], [pytest.approx(2 / 3), 1])
    outside = [{**entries[0], "bbox_x": 40}]
    path.write_text(json.dumps(outside))
    with pytest.raises(
        DataError, match=r"entry 0, .*halves.png: .*its box \[40, 0, 8, 8\] lies outside of its 16 x 8 pixels"
    ):
        measure(folder, [path])
    attributes = [{k: v for k, v in entries[0].items() if k != "relation_name"} | {"attributes": ["red", "open"]}]
    path.write_text(json.dumps(attributes))
    assert [example.kind for example in read_examples(path, folder)] == ["red open"]


def test_the_mean_over_kinds_has_an_interval_over_pictures() -> None:
    """Of kinds of 80 and 20 pictures half are right: their mean varies as that of 2^2 / (1 / 80 + 1 / 20) = 64 pictures."""
    examples = [
        Example(str(i), (Path(f"{i}.png"),), (None,), ("a", "b"), "on" if i < 80 else "under", "file")
        for i in range(100)
    ]
    scores: Any = choice_scores(examples, (torch.arange(100) % 2).double(), 2000, 0)
    assert scores["macro_acc"] == 0.5
    width = scores["macro_acc_ci95_high"] - scores["macro_acc_ci95_low"]
    assert width == pytest.approx(2 * 1.96 * 0.5 / 64**0.5, rel=0.1)
    right: Any = choice_scores(examples, torch.ones(100), 2000, 0)
    assert (right["macro_acc_ci95_low"], right["macro_acc_ci95_high"]) == wilson(64, 64)


def slow_winoground(s: Tensor) -> tuple[float, float, float]:
    """The three scores of one example without ties, as the paper defines them; s[picture, caption]."""
    text = bool(s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0])
    image = bool(s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1])
    return float(text), float(image), float(text and image)


def test_winoground_scores_are_those_of_the_slow_loop() -> None:
    cosines = torch.rand(500, 2, 2, generator=torch.Generator().manual_seed(0))
    outcomes, tied = winoground_outcomes(cosines)
    expected = torch.tensor([slow_winoground(s) for s in cosines], dtype=torch.float64)
    for i, name in enumerate(WINOGROUND):
        assert torch.equal(outcomes[name], expected[:, i])
    assert not tied.any()
    scores = winoground_scores(outcomes)
    require_complete("winoground", scores | {"n": 500}, WINOGROUND)
    for name in WINOGROUND:
        assert scores[name] == pytest.approx(scores[f"{name}_chance"], abs=0.06), "random scores are near chance"
        assert (
            float(scores[f"{name}_ci95_low"] or 0) < float(scores[name] or 0) < float(scores[f"{name}_ci95_high"] or 0)
        )


def test_ties_count_as_their_mean_over_all_orders() -> None:
    """Every arrangement of equal and unequal scores: text and image in pairs, group over all orders of the four."""
    whole = torch.tensor([*product((0.0, 1.0, 2.0, 3.0), repeat=4)]).unflatten(1, (2, 2))
    outcomes, tied = winoground_outcomes(whole)
    for i, s in enumerate(whole):
        orders = [s + 0.1 * torch.tensor(order).view(2, 2) for order in permutations((0.0, 1.0, 2.0, 3.0))]
        groups = [slow_winoground(order)[2] for order in orders]
        assert float(outcomes["group_score"][i]) == pytest.approx(sum(groups) / len(groups))
        texts = [slow_winoground(order)[0] for order in orders]
        if len(s.unique()) < 4 and tied[i]:
            continue
        assert float(outcomes["text_score"][i]) == sum(texts) / len(texts)
    same, _ = winoground_outcomes(torch.ones(1, 2, 2))
    assert [float(same[name]) for name in WINOGROUND] == [0.25, 0.25, pytest.approx(1 / 6)]


def test_winoground(folder: Path) -> None:
    right = ("red", "blue", "a red one", "a blue one")
    path = winoground(folder, [right, ("red", "blue", "a blue one", "a red one"), ("red", "red", *right[2:]), right])
    with build(folder, [path]) as evaluator:
        scores = dict(evaluator.evaluate(knowing_model()))
        require_complete("aro", scores, evaluator.headlines)
        table = evaluator.tables["samples"]
    # Of two equal pictures one caption's picture is a tie, and so is the other's: 1/2 * 1/2; one caption is right of both.
    assert [scores[name] for name in WINOGROUND] == [0.5, pytest.approx((1 + 0 + 0.25 + 1) / 4), 0.5]
    assert (scores["n"], scores["tie_rate"]) == (4, 0.25)
    assert (list(table.outcomes), table.columns["class"]) == (list(WINOGROUND), ["Tag0", "Tag1", "Tag0", "Tag1"])
    texts = table.texts()
    assert texts["text"] == ["a red one", "a blue one", "a red one", "a red one"]
    assert texts["other_text"] == ["a blue one", "a red one", "a blue one", "a blue one"]
    chance = measure(folder, [path], collapsed())
    assert [chance[name] for name in WINOGROUND] == [0.25, 0.25, pytest.approx(1 / 6)]
    assert "acc" not in chance


def of_colours(folder: str) -> dict[str, Any]:
    return measure(Path(folder), [Path(folder) / "swap_att.json"])


@pytest.mark.parametrize("n", [1, 3])
def test_two_processes_give_the_scores_of_one(two_processes: Processes, folder: Path, n: int) -> None:
    sugarcrepe(folder, "swap_att", [("red", "blue"), ("green", "red"), ("blue", "green")][:n])
    first, second = two_processes.run(of_colours, [(str(folder),), (str(folder),)])
    assert first == second
    assert first == pytest.approx(of_colours(str(folder)))


def test_damaged_pictures_are_told_or_counted(folder: Path) -> None:
    path = sugarcrepe(folder, "swap_att", [("red", "blue"), ("green", "red"), ("blue", "green")])
    (folder / "green.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"swap_att.json, entry 1, .*green.png: .*\nTo leave such examples out"):
        measure(folder, [path])
    scores = measure(folder, [path], on_error="skip")
    assert (scores["n"], scores["n_skipped"]) == (2, 1)
    for name in NAMES:
        (folder / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="no sample has a picture that can be decoded: of 3, 3 are damaged"):
        measure(folder, [path], on_error="skip")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "got something else than entries"),
        ("[1]", "got something else than entries"),
        (
            '[{"photo": "a.png"}]',
            "its entries have photo; wanted the keys of SugarCrepe: filename, caption, negative_caption;",
        ),
        (
            '[{"filename": "red.png", "caption": "", "negative_caption": "b"}]',
            "entry 0: got '' for 'caption', wanted text",
        ),
        (
            '[{"filename": "x.png", "caption": "a", "negative_caption": "b"}]',
            "1 of its pictures are not in .*, such as x.png",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused(folder: Path, text: str, said: str) -> None:
    path = folder / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        build(folder, [path]).open()


def test_wrong_settings_are_refused(folder: Path) -> None:
    both = [sugarcrepe(folder, "swap_att", [("red", "blue")]), winoground(folder, [("red", "blue", "red", "blue")])]
    with pytest.raises(DataError, match="swap_att and examples have one and two pictures an entry"):
        build(folder, both).open()
    with pytest.raises(ValueError, match="wanted none: this evaluator reads `files`"):
        build(folder, both, shards=["x"])
    with pytest.raises(RecipeError, match="wanted pictures first, and captions second"):
        build(folder, both, pair=["words", "picture"])
    broken = EmbeddingModel({**knowing_model().encoders}, {"picture": nn.Identity(), "words": nn.Identity()})
    broken.encoders["words"].table.data[:] = torch.nan
    with pytest.raises(NumericError, match=r"the embedding of 'words' of key 'swap_att.json, entry 0'"):
        measure(folder, both[:1], broken)


def test_the_digest_knows_the_pictures(folder: Path) -> None:
    evaluator = build(folder, [sugarcrepe(folder, "swap_att", [("red", "blue"), ("green", "red")])])
    before = evaluator.facts()
    evaluator.close()
    assert evaluator.facts() == before
    (folder / "red.png").write_bytes(png(COLOURS["red"]) + b" ")
    evaluator.close()
    assert evaluator.facts() != before
