"""Copies that no hash finds are near by the features of a model: mirrored pictures here, whose model is blind to sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor

from mmssl.core.errors import DataError, RecipeError
from mmssl.curation.leakage import find_leaks
from mmssl.evaluation.near_samples import near_samples
from tests.curation.test_leakage import picture, saved
from tests.evaluation.world import modalities, model, write_shard


def blind_to_sides(x: Tensor) -> Tensor:
    x = x.float()
    return (x + x.flip(3) - 255).flatten(1)


@pytest.fixture
def shards(tmp_path: Path) -> tuple[str, str]:
    """The second training picture is the third test picture, mirrored; one training file is damaged."""
    test = [(f"test{i}", {"png": saved(picture(i)), "txt": b"a"}) for i in range(5)]
    train = [(f"train{i}", {"png": saved(picture(100 + i)), "txt": b"a"}) for i in range(7)]
    train[1][1]["png"] = saved(ImageOps.mirror(picture(2)))
    train[4][1]["png"] = b"no picture"
    paths = (write_shard(tmp_path / f"{name}/0.tar", some) for name, some in (("train", train), ("test", test)))
    return tuple(map(str, paths))  # type: ignore[return-value]


def test_a_mirrored_copy_is_the_nearest(shards: tuple[str, str]) -> None:
    train, test = [shards[0]], [shards[1]]
    told: list[tuple[int, int]] = []
    blind = model(192, picture=blind_to_sides, words=lambda x: x.float())
    found = near_samples(blind, modalities(), train, test, batch_size=2, progress=lambda *now: told.append(now))
    assert set(found) == {"picture"}
    nearby = found["picture"]
    assert [name.split()[0] for name in nearby.test] == [f"test{i}" for i in range(5)]
    assert nearby.train[2].split()[0] == "train1"
    assert float(nearby.cosines[2]) > 0.99
    assert all(float(nearby.cosines[i]) < 0.97 for i in (0, 1, 3, 4))
    assert told[-1] == (12, 12)
    views = torch.stack([modalities()["picture"].view("eval")(np.array(picture(i)), {}) for i in range(5)])
    rows = F.normalize(blind_to_sides(views), dim=1)
    cosines = rows @ rows.T - 2 * torch.eye(5)
    torch.testing.assert_close(nearby.within, cosines.amax(1), atol=1e-5, rtol=0)
    assert nearby.quantiles(1.0) == (pytest.approx(float(nearby.cosines.max())), pytest.approx(float(cosines.max())))


def test_the_report_has_it_and_does_not_call_it_a_proof(shards: tuple[str, str]) -> None:
    report = find_leaks([shards[0]], [shards[1]])
    assert "near" not in report.counts()
    report.leaks = [leak for leak in report.leaks if leak.kind != "caption"]
    report.add_near("picture", [("test2 of b", "train1 of a")], "picture: near is a cosine from 0.9")
    assert report.counts()["near"] == 1
    assert report.ok
    assert "picture of test2 of b is like that of train1 of a" in report.table()
    assert "near is a cosine from 0.9" in report.table()


def test_what_cannot_be_compared_is_told(shards: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this model has words, wanted a modality besides texts"):
        near_samples(model(4, words=lambda x: x.float()), modalities(), [shards[0]], [shards[1]])
    other = str(write_shard(tmp_path / "texts.tar", [("a", {"txt": b"a"})]))
    with pytest.raises(DataError, match="no modality of picture is in both: the test shards have txt"):
        near_samples(model(192, picture=blind_to_sides), modalities(), [shards[0]], [other])
