"""Which queries are shown, what was found for them, and how items of shards are shown."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.evaluation.ranking import pair_ranks
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.reporting.gallery import Gallery, choose_queries, embedding_map, gallery, showcase, similarity
from mmssl.reporting.report import write_report
from mmssl.reporting.shown import ShownSample
from tests.evaluation.world import (
    COLOURS,
    NAMES,
    colour_shards,
    configured,
    items,
    knowing_model,
    modalities,
    model,
    write_shard,
)  # fmt: skip


def made(captions: int = 2, n: int = 20, digest: torch.Tensor | None = None) -> tuple[Gallery, list[int]]:
    """Image -> text, where noise grows with the number of the sample, so that ranks do too."""
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(n, 12, generator=generator), dim=-1)
    owner = torch.arange(n).repeat_interleave(captions)
    noise = torch.linspace(0, 2, n)[owner][:, None] * torch.randn(len(owner), 12, generator=generator)
    a, b = items(image), items(F.normalize(image[owner] + noise, dim=-1), owner, digest)
    ranks, _ = pair_ranks(a.rows, a.owner, b.rows, b.owner)
    shown = gallery(
        "image → text",
        a,
        b,
        ranks,
        lambda row: ShownSample(f"key{row}"),
        lambda row: ShownSample(f"key{row // captions}", text=f"caption {row}"),
        count=3,
        answers=4,
    )
    return shown, ranks.ranks[:, 0].tolist()


def test_best_worst_and_random_queries_are_shown() -> None:
    shown, ranks = made()
    assert list(shown.sections) == ["best", "worst", "random"]
    assert all(len(picks) == 3 for picks in shown.sections.values())
    assert [pick.rank for pick in shown.sections["best"]] == sorted(ranks)[:3]
    assert [pick.rank for pick in shown.sections["worst"]] == sorted(ranks, reverse=True)[:3]
    assert made()[0] == shown


def test_answers_are_the_first_candidates() -> None:
    shown, _ = made()
    for picks in shown.sections.values():
        for pick in picks:
            scores = [answer.score for answer in pick.answers]
            assert scores == sorted(scores, reverse=True)
            assert len(scores) == 4
            for place, answer in enumerate(pick.answers, 1):
                assert answer.right == (answer.thing.key == pick.query.key)
                assert answer.right <= (place >= pick.rank)
            assert pick.truth.right
            assert pick.truth.thing.key == pick.query.key
            assert (pick.rank <= 4) == any(answer.right for answer in pick.answers)


def test_copies_of_a_right_answer_are_marked() -> None:
    shown, _ = made(digest=torch.arange(40) % 2)  # two distinct texts in all
    answers = [answer for picks in shown.sections.values() for pick in picks for answer in pick.answers]
    assert all(answer.same != answer.right for answer in answers)
    assert any(answer.same for answer in answers)
    assert not any(answer.same for picks in made()[0].sections.values() for pick in picks for answer in pick.answers)


def test_one_query_a_sample_and_none_that_cannot_succeed() -> None:
    owner = torch.tensor([0, 0, 0, 1, 2])
    x = torch.eye(5)
    ranks, _ = pair_ranks(x, owner, x[2:], torch.tensor([0, 1, 5]))
    chosen = choose_queries(ranks, owner, count=5)
    assert sorted(chosen["best"]) == [2, 3]
    assert all({owner[row].item() for row in rows} == {0, 1} for rows in chosen.values())


def test_similarity_shows_samples_that_have_both() -> None:
    a = items(torch.eye(4))
    b = items(torch.eye(4)[[1, 1, 3]], torch.tensor([1, 1, 3]))
    shown = similarity(a, b, lambda row: ShownSample(f"a{row}"), lambda row: ShownSample(f"b{row}"))
    assert [thing.key for thing in shown.rows] == ["b0", "b2"]
    assert [thing.key for thing in shown.columns] == ["a1", "a3"]
    assert torch.equal(shown.matrix, torch.eye(2))


@pytest.mark.parametrize("pair", [["picture", "words"], ["words", "picture"]])
def test_items_of_shards_are_shown(tmp_path: Path, pair: list[str]) -> None:
    shards = colour_shards(tmp_path, 12)
    evaluator = configured(RetrievalConfig, shards=shards, pair=pair, batch_size=5).build(modalities())
    galleries, heat, embeddings = showcase(evaluator, knowing_model(), count=2, answers=3)
    assert [shown.title for shown in galleries] == [f"{pair[0]} → {pair[1]}", f"{pair[1]} → {pair[0]}"]
    by_query = {shown.title.split(" ")[0]: shown for shown in galleries}
    for pick in by_query["words"].sections["best"]:
        assert any(name in pick.query.text for name in COLOURS)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(pick.answers[0].thing.picture.split(",")[1]))))
        assert pixels.shape == (8, 8, 3)
        colour = next(name for name in COLOURS if name in pick.query.text)
        assert np.abs(pixels.mean((0, 1)) - COLOURS[colour]).max() < 5
    assert {name: len(points) for name, points in embeddings.curves.items()} == {
        pair[0]: 12 if pair[0] == "picture" else 24
    } | {pair[1]: 24 if pair[0] == "picture" else 12}
    assert heat.title == "words × picture"
    assert heat.matrix.shape == (12, 12)
    assert heat.rows[1].text == "a red picture"
    assert all(thing.picture for thing in heat.columns)


def test_the_map_is_the_two_largest_components() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(50, 6, generator=generator) * torch.tensor([9.0, 1, 1, 5, 1, 1])
    chart = embedding_map({"a": spread[:30], "b": spread[30:]}, most=25)
    assert [len(points) for points in chart.curves.values()] == [25, 20]
    whole = torch.cat([torch.tensor(points) for points in chart.curves.values()])
    assert torch.allclose(whole.mean(0), torch.zeros(2), atol=1e-5)
    assert whole.var(0)[0] > whole.var(0)[1] > 10
    assert chart.dots
    assert chart.x.endswith(" % of the variance")
    single = embedding_map({"a": torch.ones(1, 3)})
    assert [*single.curves.values()] == [[(0.0, 0.0)]]


def test_a_page_of_long_sounds_stays_small(tmp_path: Path) -> None:
    """Files of 320 kB, of which the page would hold two hundred."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(9):
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, 8_000, 0, "NONE", ""))
            out.writeframes(rng.integers(-9_000, 9_000, 160_000, dtype=np.int16).tobytes())
        samples.append((f"key{i}", {"wav": file.getvalue(), "txt": f"a {NAMES[i % 8]}".encode(), "png": noise(rng)}))
    shards = [str(write_shard(tmp_path / "0.tar", samples))]
    known = {
        "sound": configured(AudioConfig, rate=8_000, seconds=1.0).build("sound"),
        "picture": configured(ImageConfig, size=224).build("picture"),
    }
    trained = model(
        4, sound=lambda x: x.flatten(1)[:, :4].float() + 0.5, picture=lambda x: x.flatten(1)[:, :4].float() + 0.5
    )
    evaluator = configured(RetrievalConfig, shards=shards, pair=["sound", "picture"]).build(known)
    galleries, heat, _ = showcase(evaluator, trained)
    write_report(tmp_path / "r.html", title="t", galleries=galleries, similarities=[heat])
    page = (tmp_path / "r.html").read_text()
    assert 4e6 < len(page) < 10e6
    assert page.count("<audio ") >= 12 + 12 * 5
    assert " s of 20.0 s" in page


def noise(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()
