"""Retrieval examples for the report: best and worst queries with their answers, and a similarity heat map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.seeding import generator
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation.collect import Items
from mmssl.evaluation.common import inference
from mmssl.evaluation.ranking import Ranks, pair_ranks
from mmssl.evaluation.retrieval import Retrieval
from mmssl.evaluation.tiles import exact_products
from mmssl.reporting.figures import Chart
from mmssl.reporting.shown import ShownSample, show_sample

SECTIONS = ("best", "worst", "random")
HEAT = 16
"""Samples of the heat map."""
MEDIA = 7_000_000
"""Characters of all pictures and sounds of `showcase`, so that a page stays under 10 MB."""
PICTURE = 14_000
"""Characters of a picture; sounds share the rest."""

Show = Callable[[int], ShownSample]
"""Row of an item -> what is shown of it."""


@dataclass(frozen=True)
class Answer:
    """A retrieved candidate and its cosine.

    Attributes:
        right: it belongs to the query's sample.
        same: it belongs to another sample, but equals a right one byte for byte.
    """

    thing: ShownSample
    score: float
    right: bool
    same: bool = False


@dataclass(frozen=True)
class Pick:
    """One query: the rank of its best right candidate, that candidate with its score, and the first answers."""

    query: ShownSample
    rank: int
    truth: Answer
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Gallery:
    """Queries of one direction by section: best, worst, random."""

    title: str
    sections: Mapping[str, tuple[Pick, ...]]


@dataclass(frozen=True)
class Similarity:
    """Cosines [R, C] of some samples, with the items of rows and columns."""

    matrix: Tensor
    rows: tuple[ShownSample, ...]
    columns: tuple[ShownSample, ...]
    title: str = ""


def gallery(
    title: str,
    queries: Items,
    candidates: Items,
    ranks: Ranks,
    show_query: Show,
    show_candidate: Show,
    *,
    count: int = 4,
    answers: int = 5,
    seed: int = 0,
) -> Gallery:
    """Pick `count` queries a section and find their first `answers` candidates.

    Args:
        title: of the direction.
        queries: unit-norm rows [Q, E] with owners.
        candidates: unit-norm rows [M, E] with owners.
        ranks: of these queries among these candidates, from `pair_ranks`.
        show_query: row of a query -> what is shown of it.
        show_candidate: the same of a candidate.
        count: queries a section.
        answers: candidates a query.
        seed: of the random section.
    """
    sections = {}
    for name, chosen in choose_queries(ranks, queries.owner, count, seed).items():
        picks = []
        for query in chosen:
            with exact_products():
                scores = candidates.rows @ queries.rows[query]
            right = candidates.owner == queries.owner[query]
            same = torch.isin(candidates.digest, candidates.digest[right]) & ~right

            def answer(row: int, scores: Tensor = scores, right: Tensor = right, same: Tensor = same) -> Answer:
                return Answer(show_candidate(row), float(scores[row]), bool(right[row]), bool(same[row]))

            found = scores.sort(descending=True, stable=True).indices[:answers].tolist()
            truth = int(torch.where(right, scores, -torch.inf).argmax())
            picks.append(
                Pick(show_query(query), int(ranks.ranks[query, 0]), answer(truth), tuple(answer(row) for row in found))
            )
        sections[name] = tuple(picks)
    return Gallery(title, sections)


def choose_queries(ranks: Ranks, owner: Tensor, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Rows of the best queries (lowest rank, then highest score of the right candidate), the worst, and random ones.

    A section has at most one query a sample, so that the captions of one picture do not fill it.
    """
    usable = [row for row, n in enumerate(ranks.positives.tolist()) if n]
    rank, score, owners = ranks.ranks[:, 0].tolist(), ranks.best.tolist(), owner.tolist()
    ordered = sorted(usable, key=lambda row: (rank[row], -score[row], row))
    shuffled = generator(seed, "gallery").permutation(usable).tolist()

    def first(rows: list[int]) -> list[int]:
        of_sample: dict[int, int] = {}
        for row in rows:
            of_sample.setdefault(owners[row], row)
        return list(of_sample.values())[:count]

    return dict(zip(SECTIONS, (first(ordered), first(ordered[::-1]), first(shuffled)), strict=True))


def similarity(a: Items, b: Items, show_a: Show, show_b: Show, *, count: int = HEAT, title: str = "") -> Similarity:
    """Cosines of the first `count` samples that have both: first item of b down, first item of a across; the diagonal is right.

    Sounds are left out: there is no room for them.
    """
    owners = torch.unique(a.owner)
    shared = owners[torch.isin(owners, b.owner)][:count]
    rows, columns = torch.searchsorted(b.owner, shared), torch.searchsorted(a.owner, shared)
    with exact_products():
        matrix = b.rows[rows] @ a.rows[columns].T

    def silent(show: Show, numbers: Tensor) -> tuple[ShownSample, ...]:
        return tuple(replace(show(row), sound="", note="") for row in numbers.tolist())

    return Similarity(matrix.cpu(), silent(show_b, rows), silent(show_a, columns), title)


def showcase(
    evaluator: Retrieval,
    model: EmbeddingModel,
    *,
    prefix: str = "",
    share: float = 1.0,
    count: int = 4,
    answers: int = 5,
    seed: int = 0,
) -> tuple[list[Gallery], Similarity, Chart]:
    """Galleries of both directions, a heat map, and a map of the embeddings, from the shards of a retrieval evaluator.

    Every process must call it.

    Args:
        evaluator: of the two modalities.
        model: to show.
        prefix: of titles, such as the name of the evaluator.
        share: of the characters of `MEDIA`.
        count, answers, seed: see `gallery`.
    """
    config = evaluator.config
    data = evaluator.collect(model)
    index = evaluator.shards.index.open()
    a, b = (data[name] for name in config.pair)
    with inference(model):
        ranks = pair_ranks(a.rows, a.owner, b.rows, b.owner)
    heard = sum(evaluator.modalities[name].audible for name in config.pair)
    most = len(SECTIONS) * count * (answers + 2)  # items of a modality, and the pictures of the heat map
    of_pictures = (len(config.pair) - heard) * (most + HEAT) * PICTURE
    of_sound = int(share * MEDIA - of_pictures) // (most * max(1, heard))
    show = {}
    for name in config.pair:
        modality = evaluator.modalities[name]
        show[name] = item_renderer(modality, index, data[name].owner, of_sound if modality.audible else PICTURE)
    galleries = [
        gallery(
            f"{prefix}{query} → {found}",
            data[query],
            data[found],
            rank,
            show[query],
            show[found],
            count=count,
            answers=answers,
            seed=seed,
        )
        for (query, found), rank in zip((config.pair, config.pair[::-1]), ranks, strict=True)
    ]
    first, second = config.pair
    if evaluator.modalities[first].language:  # captions go beside rows
        first, second = second, first
    heat = similarity(data[first], data[second], show[first], show[second], title=f"{prefix}{second} × {first}")
    return galleries, heat, embedding_map({name: data[name].rows for name in config.pair}, seed=seed)


def embedding_map(rows: Mapping[str, Tensor], *, most: int = 600, seed: int = 0) -> Chart:
    """The two directions of largest variance of all embeddings (PCA), where modalities that lie apart are seen to.

    Args:
        rows: modality -> [n, E].
        most: items of each modality that are drawn, at random.
        seed: of the choice.
    """
    chosen = {}
    for name, all_rows in rows.items():
        picked = generator(seed, "embedding_map", name).permutation(len(all_rows))[:most]
        chosen[name] = all_rows[torch.from_numpy(picked).to(all_rows.device)].double().cpu()
    whole = torch.cat([*chosen.values()])
    mean = whole.mean(0)
    _, sizes, axes = torch.linalg.svd(whole - mean, full_matrices=False)
    axes = F.pad(axes[:2], (0, 0, 0, max(0, 2 - len(axes))))  # of one item, or one dimension, there is one
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # one picture on every machine
    share = float(sizes[:2].square().sum() / sizes.square().sum().clamp_min(1e-30))
    points = {name: [(float(x), float(y)) for x, y in (own - mean) @ axes.T] for name, own in chosen.items()}
    return Chart(
        f"Embeddings of {' and '.join(rows)}, first two principal components",
        points,
        x=f"{100 * share:.0f} % of the variance",
        dots=True,
    )


def item_renderer(modality: Modality, index: ShardIndex, owner: Tensor, largest: int) -> Show:
    """A function from row to what is shown of it: reads the sample again.

    Args:
        modality: of the items.
        index: of the shards.
        owner: of the rows [n], ascending.
        largest: length of a data URI in characters.
    """

    @cache
    def show(row: int) -> ShownSample:
        item = row - int(torch.searchsorted(owner, owner[row]))
        return show_sample(index, modality, int(owner[row]), item, largest)

    return show
