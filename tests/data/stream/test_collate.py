from __future__ import annotations

import pytest
import torch

from mmssl.core.sample import Fault, Origin
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import Modality
from mmssl.data.stream.collate import BatchRow, collate

TEXT = TextConfig.model_validate_json('{"tokenizer": {"kind": "clip", "context_length": 5}}').build("text")
MODALITIES: dict[str, Modality] = {"text": TEXT, "label": LabelConfig().build("label")}


def captions(count: int) -> torch.Tensor:
    return torch.arange(1, 5 * count + 1).reshape(count, 5)


def test_stacks_in_the_order_of_rows() -> None:
    rows = [BatchRow(i, f"k{i}", {"label": {"value0": torch.tensor(i * 10)}}) for i in (4, 2, 7)]
    batch = collate(rows, MODALITIES, {"label": {"value": 1}})
    assert batch["label"]["value0"].tolist() == [40, 20, 70]
    assert batch.index.tolist() == [4, 2, 7]
    assert batch.keys == ("k4", "k2", "k7")
    assert (dict(batch.present), dict(batch.lengths), batch.faults) == ({}, {}, ())


def test_pads_ragged_views_and_tells_their_lengths() -> None:
    rows = [BatchRow(i, "k", {"text": {"eval0": captions(count)}}) for i, count in enumerate([2, 3, 1])]
    batch = collate(rows, MODALITIES, {"text": {"eval": 1}})
    x = batch["text"]["eval0"]
    assert x.shape == (3, 3, 5)
    assert x.dtype == torch.int64
    assert batch.lengths["text"].tolist() == [2, 3, 1]
    for row, count in zip(x, [2, 3, 1], strict=True):
        assert torch.equal(row[:count], captions(count))
        assert not row[count:].any()


def test_lengths_are_there_even_where_all_are_equal() -> None:
    rows = [BatchRow(i, "k", {"text": {"eval0": captions(2)}}) for i in range(2)]
    assert collate(rows, MODALITIES, {"text": {"eval": 1}}).lengths["text"].tolist() == [2, 2]


def test_missing_modalities_are_blank_and_marked() -> None:
    needs = {"label": {"value": 1}, "text": {"eval": 1, "tokens": 1}}
    full = {"text": {"eval0": captions(1), "tokens0": captions(1)[0]}, "label": {"value0": torch.tensor(3)}}
    rows = [BatchRow(0, "a", {"label": full["label"]}), BatchRow(1, "b", full)]
    batch = collate(rows, MODALITIES, needs)
    assert batch.present.keys() == {"text"}
    assert batch.present["text"].tolist() == [False, True]
    assert batch.lengths["text"].tolist() == [0, 1]
    assert batch["text"]["tokens0"].tolist() == [[49406, 49407, 0, 0, 0], [1, 2, 3, 4, 5]]
    nobody = collate([BatchRow(0, "a", {"label": full["label"]})], MODALITIES, needs)
    assert nobody.present["text"].tolist() == [False]
    assert nobody["text"]["eval0"].shape == (1, 0, 5)


def test_no_rows_keep_shapes_and_faults() -> None:
    fault = Fault("k", Origin("data", "a.tar", 0, 0), "txt", "empty", "nothing")
    batch = collate([], MODALITIES, {"text": {"eval": 1, "tokens": 2}}, [fault])
    assert len(batch) == 0
    assert batch["text"]["eval0"].shape == (0, 0, 5)
    assert batch["text"]["tokens1"].shape == (0, 5)
    assert batch.faults == (fault,)


def test_ragged_views_of_one_modality_must_agree() -> None:
    rows = [BatchRow(0, "k", {"text": {"eval0": captions(2), "eval1": captions(1)}})]
    with pytest.raises(ValueError, match="different lengths"):
        collate(rows, MODALITIES, {"text": {"eval": 2}})
