"""Cosines of pairs: equal to a loop over samples and captions, whatever the batches; and what has none is told."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.data.samples import load
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation import pair_similarity
from mmssl.evaluation.embeddings.search import EmbeddedFolder
from mmssl.evaluation.embeddings.write import write_embeddings
from mmssl.evaluation.pair_similarity import embedded_similarities, pair_similarities
from tests.evaluation.world import NAMES, colour_sample, knowing_model, modalities, write_shard

PAIR = ("picture", "words")


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    """Twelve samples of 1 to 3 captions, some of which name the next colour; sample 5 has none, and picture 8 is damaged."""
    samples = [colour_sample(number, 1 + number % 3) for number in range(12)]
    for number in (2, 7, 10):
        right, wrong = (NAMES[one % len(NAMES)] for one in (number, number + 1))
        samples[number][1]["txt"] = samples[number][1]["txt"].replace(right.encode(), wrong.encode(), 1)
    del samples[5][1]["txt"]
    samples[8][1]["png"] = b"no picture"
    return ShardIndex.open(
        [write_shard(tmp_path / f"{i}.tar", part) for i, part in enumerate((samples[:4], samples[4:]))]
    )


def slow_cosines(index: ShardIndex, numbers: list[int]) -> list[float]:
    model, known = knowing_model().eval(), modalities()
    found = []
    for number in numbers:
        values = load(index, number, known, known).values
        views = {name: known[name].view("eval")(values[name], {}) for name in PAIR}
        pictures = model.embed("picture", views["picture"][None])
        captions = [model.embed("words", one[None])[0] for one in views["words"]]
        found.append(max(float((a @ b).detach()) for a, b in product(pictures, captions)))
    return found


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_the_best_caption_counts_whatever_the_batches(
    index: ShardIndex, batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    numbers = [0, 2, 3, 5, 6, 7, 8, 9, 11]
    cosines, faults = pair_similarities(
        knowing_model(),
        modalities(),
        PAIR,
        index,
        numbers,
        batch_size=batch_size,
        progress=lambda *now: told.append(now),
    )
    assert cosines.dtype == np.float32
    assert np.isnan(cosines).tolist() == [number in (5, 8) for number in numbers]
    usable = [number for number in numbers if number not in (5, 8)]
    np.testing.assert_allclose(cosines[~np.isnan(cosines)], slow_cosines(index, usable), atol=1e-5)
    assert {number: (fault.reason, fault.field) for number, fault in faults.items()} == {
        5: ("missing", "words"), 8: ("undecodable", "png")
    }  # fmt: skip
    assert faults[5].detail == "got .png, .cls, wanted .txt", "no advice on training: this chooses samples"
    assert told[-1][1] == len(numbers)
    write_embeddings(
        knowing_model(), modalities(), index, tmp_path / "rows", wanted=PAIR, batch_size=batch_size, max_failures=1
    )
    monkeypatch.setattr(pair_similarity, "TILE", batch_size)
    embedded, without = embedded_similarities(EmbeddedFolder.open(tmp_path / "rows"), PAIR, index, numbers)
    np.testing.assert_allclose(embedded, cosines, atol=1e-6)
    assert [(number, fault.key, fault.reason) for number, fault in without.items()] == [
        (5, "sample005", "missing"), (8, "sample008", "missing")
    ]  # fmt: skip
    swapped, _ = pair_similarities(knowing_model(), modalities(), PAIR[::-1], index, numbers, batch_size=batch_size)
    np.testing.assert_allclose(swapped, cosines, atol=1e-6)


def test_models_and_shards_without_a_modality_are_refused(index: ShardIndex, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no encoder for 'label'"):
        pair_similarities(knowing_model(), modalities(), ("picture", "label"), index, [0])
    _, fields = colour_sample(0)
    bare = ShardIndex.open([write_shard(tmp_path / "bare.tar", [("a", {"png": fields["png"]})])])
    with pytest.raises(DataError, match=r"no sample has 'words' .*got \.png, wanted \.txt") as caught:
        pair_similarities(knowing_model(), modalities(), PAIR, bare, [0])
    assert "choose other shards" in str(caught.value)
    assert "data.optional" not in str(caught.value)
