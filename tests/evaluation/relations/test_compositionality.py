"""True captions against false ones of their own, with models that read words, places of words, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.errors import DataError, NumericError, RecipeError
from mmssl.data.modalities.text import TextConfig, TextModality
from mmssl.data.modality import Modality
from mmssl.evaluation.relations.compositionality import CompositionalityConfig
from tests.evaluation.world import configured, model, png, write_shard
from tests.evaluation.world import modalities as usual

CAPTIONS = (
    "a red cup and a blue ball",
    "two dogs and three cats on the left",
    "a large dog barks before a bell rings\nthe green cup",
    "a cup",
)
"""The colour of the picture is the number of the sample: what it shows is up to the model."""


def shards(folder: Path, captions: Sequence[str] = CAPTIONS) -> list[str]:
    samples = [(f"s{i}", {"png": png((40 * i, 0, 0)), "txt": text.encode()}) for i, text in enumerate(captions)]
    return [str(write_shard(folder / "a.tar", samples))]


def modalities(**changes: Any) -> dict[str, Modality]:
    text = {"captions": "lines", "tokenizer": {"kind": "clip", "context_length": 16}, **changes}
    return usual() | {"words": configured(TextConfig, **text).build("words")}


def hashed(weights: Callable[[int], float]) -> Callable[[Tensor], Tensor]:
    """Token ids [B, T] -> [B, 64]: a random row for each token, weighted by its place and summed."""
    table = torch.randn(49408, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def embed(x: Tensor) -> Tensor:
        weight = torch.tensor([weights(place) for place in range(x.shape[1])], dtype=torch.float64)
        return (table[x] * weight[:, None] * (x > 0)[..., None]).sum(1).float()

    return embed


def seen(read: Callable[[Tensor], Tensor], captions: Sequence[str] = CAPTIONS) -> Callable[[Tensor], Tensor]:
    """Pictures [B, 3, H, W] -> the mean embedding of the true captions of each."""
    text = modalities()["words"]
    assert isinstance(text, TextModality)
    rows = torch.stack([F.normalize(read(text.tokenize(one.split("\n"))), dim=1).mean(0) for one in captions])

    def embed(x: Tensor) -> Tensor:
        return rows[(x[:, 0].float().mean((1, 2)) / 40).round().long()]

    return embed


def measure(folder: Path, read: Callable[[Tensor], Tensor], **settings: Any) -> tuple[dict[str, Any], Any]:
    config = {"shards": shards(folder), "pair": ["picture", "words"], "resamples": 100, "batch_size": 2, **settings}
    with configured(CompositionalityConfig, **config).build(modalities()) as evaluator:
        return dict(evaluator.evaluate(model(64, picture=seen(read), words=read))), evaluator.tables


def test_one_that_reads_order_is_right_and_a_bag_of_words_is_not_of_swapped_ones(tmp_path: Path) -> None:
    ordered, tables = measure(tmp_path, hashed(lambda place: 1 / (1 + place)))
    assert {name: ordered[f"acc_{name}_n"] for name in ("swap", "side", "order", "number", "attribute", "add")} == {
        "swap": 2, "side": 1, "order": 1, "number": 1, "attribute": 3, "add": 2
    }  # fmt: skip
    assert (ordered["acc_n"], ordered["acc_replace_n"], ordered["n"], ordered["n_excluded"]) == (10, 6, 3, 1)
    assert (ordered["acc"], ordered["acc_swap"], ordered["tie_rate"]) == (1, 1, 0)
    assert tables["samples"].columns["key"].count("s0") == 3
    assert sum(tables["samples"].columns["acc"]) / 10 == ordered["acc"]
    bag, _ = measure(tmp_path, hashed(lambda place: 1))
    assert bag["acc_replace"] == bag["acc_add"] == 1
    assert bag["tie_rate"] < 1


def test_a_collapsed_model_scores_chance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scores, _ = measure(tmp_path, lambda x: torch.ones(len(x), 64))
    assert scores["acc"] == scores["acc_swap"] == scores["acc_replace"] == scores["acc_swap_chance"] == 0.5
    assert scores["tie_rate"] == 1
    assert "compositionality of ['picture', 'words']: 100.0 % of the choices are ties" in caplog.text


def test_a_random_model_is_near_chance(tmp_path: Path) -> None:
    captions = [f"a red {one} and a blue {other}" for one in ("cup", "dog", "car") for other in ("ball", "cat", "box")]
    config = {"shards": shards(tmp_path, captions * 6), "pair": ["picture", "words"], "falsehoods": ["swap", "add"]}
    random = hashed(lambda place: (-1) ** place * (1 + place))

    def picture(x: Tensor) -> Tensor:
        return torch.randn(len(x), 64, generator=torch.Generator().manual_seed(1))

    scores = dict(
        configured(CompositionalityConfig, **config)
        .build(modalities())
        .evaluate(model(64, picture=picture, words=random))
    )
    assert (scores["n"], scores["acc_n"]) == (54, 108)
    assert scores["acc"] == pytest.approx(0.5, abs=0.2)


def test_false_captions_depend_on_the_seed_alone(tmp_path: Path) -> None:
    read = hashed(lambda place: 1 / (1 + place))
    first = measure(tmp_path, read)[0]
    assert measure(tmp_path, read, batch_size=7)[0] == pytest.approx(first)


def test_given_false_captions(tmp_path: Path) -> None:
    texts = ['{"caption": "a cup", "wrong": ["a ball", "a dog"]}', '{"caption": "a dog"}']
    samples = [(f"s{i}", {"png": png((40 * i, 0, 0)), "json": text.encode()}) for i, text in enumerate(texts)]
    files = [str(write_shard(tmp_path / "a.tar", samples))]
    read = hashed(lambda place: 1)
    made = modalities(captions={"caption": 1}, negatives="wrong")
    config = {"shards": files, "pair": ["picture", "words"], "falsehoods": ["given", "swap"]}
    evaluator = configured(CompositionalityConfig, **config).build(made)
    scores = dict(evaluator.evaluate(model(64, picture=seen(read, ["a cup", "a dog"]), words=read)))
    assert (scores["acc_given"], scores["acc_given_n"], scores["n_excluded"]) == (1, 1, 1)
    assert (scores["acc_swap"], scores["acc_swap_n"]) == (None, 0)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    read = hashed(lambda place: 1)
    evaluator = configured(CompositionalityConfig, shards=shards(tmp_path), pair=["picture", "words"]).build(
        modalities()
    )
    broken = model(64, picture=seen(read), words=lambda x: torch.full((len(x), 64), torch.nan))
    with pytest.raises(NumericError, match=r"the embedding of 'words' \(true\) of key 's0' .*is not finite"):
        list(evaluator.evaluate(broken))
    plain = configured(CompositionalityConfig, shards=shards(tmp_path, ["a cup", "a dog"]), pair=["picture", "words"])
    with pytest.raises(DataError, match=r"no sample has the relation between .* of 2, 2 lack"):
        list(plain.build(modalities()).evaluate(model(64, picture=seen(read), words=read)))
    with pytest.raises(RecipeError, match="wanted the captions second, and what they describe first"):
        configured(CompositionalityConfig, shards=["x"], pair=["words", "picture"]).build(modalities())


def test_files_have_the_captions_that_were_compared(tmp_path: Path) -> None:
    """Read again from the shards: each row has the texts of its own choice."""
    read = hashed(lambda place: 1 / (1 + place))
    config = configured(CompositionalityConfig, shards=shards(tmp_path), pair=["picture", "words"], resamples=100)
    with config.build(modalities()) as evaluator:
        dict(evaluator.evaluate(model(64, picture=seen(read), words=read)))
        table = evaluator.tables["samples"]
        texts = table.texts()
    rows = [*zip(table.columns["key"], table.columns["class"], texts["text"], texts["other_text"], strict=True)]
    assert len(rows) == 10
    swapped = [other for key, kind, _, other in rows if (key, kind) == ("s0", "swap")]
    assert swapped == ["a blue cup and a red ball"]
    assert [true for key, _, true, _ in rows if key == "s1"] == [CAPTIONS[1]] * sum(row[0] == "s1" for row in rows)
    assert {true for key, _, true, _ in rows if key == "s2"} == {*CAPTIONS[2].split("\n")}
    assert all(true != other for _, _, true, other in rows)
    assert [(true, other) for _, kind, true, other in rows if kind == "side"] == [
        (CAPTIONS[1], "two dogs and three cats on the right")
    ]
