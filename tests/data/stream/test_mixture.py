from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mmssl.core.errors import DataError
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.mixture import BlockShuffleConfig, Mixture, Quotas
from mmssl.data.stream.order import Ticket
from mmssl.data.stream.sources import Source
from tests.data.make import imagined, write

BLOCK = BlockShuffleConfig(lanes=8, slice=4, mixed=2)
COUNTS = {"a": [30, 41, 9], "b": [17], "c": [5, 6, 7, 8]}


def mixture(weights: Sequence[float] = (5, 1.5, 1.5), size: int = 16, **options: Any) -> Mixture:
    names = list(COUNTS)[: len(weights)]
    sources = [Source(imagined(COUNTS[n], n), w) for n, w in zip(names, weights, strict=True)]
    return Mixture(sources, batch_size=size, **({"seed": 3} | options))


def tickets(mix: Mixture, first: int, last: int) -> list[Ticket]:
    return [ticket for step in range(first, last) for ticket in mix.rows(step, 0, mix.batch_size)]


def source_of(mix: Mixture, number: int) -> int:
    return sum(number >= offset for offset in mix.offsets[1:])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"batches": "one_source"},
    {"shuffle": BLOCK},
    {"shuffle": BLOCK, "batches": "one_source"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_source_passes_complete_epochs_of_its_own(options: dict[str, Any]) -> None:
    mix = mixture(**options)
    seen: dict[int, Counter[Ticket]] = {0: Counter(), 1: Counter(), 2: Counter()}
    steps = 60
    for ticket in tickets(mix, 0, steps):
        seen[source_of(mix, ticket[1])][ticket] += 1
    assert [count.total() for count in seen.values()] == mix.drawn(steps)
    for source, count in seen.items():
        numbers = range(mix.offsets[source], mix.offsets[source + 1])
        assert set(count.values()) == {1}
        whole = min(count.total() // len(numbers), 5) - 1  # lanes and batches end an epoch at slightly different places
        assert whole >= 1
        assert {(epoch, n) for epoch in range(whole) for n in numbers} <= count.keys()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("world", [2, 4, 8, 16])
def test_ranks_and_restarts_change_nothing(options: dict[str, Any], world: int) -> None:
    through = tickets(mixture(**options), 0, 30)
    share = 16 // world
    for step in (29, 3, 17, 4):
        parts = [mixture(**options).rows(step, rank * share, (rank + 1) * share) for rank in range(world)]
        assert [ticket for part in parts for ticket in part] == through[16 * step : 16 * step + 16]


def test_shares_are_exact_at_every_block_and_close_in_between() -> None:
    quotas = Quotas([Fraction("0.3"), Fraction(1), Fraction("0.01")], (1,))
    total = Fraction("1.31")
    assert quotas.block * Fraction("0.01") / total >= 2
    for place in (quotas.block * n for n in (1, 2, 7, 1000, 10**9)):
        exact = [place * w / total for w in (Fraction("0.3"), Fraction(1), Fraction("0.01"))]
        counts = quotas.before(place)
        assert sum(counts) == place
        assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))
    counts = [quotas.before(place) for place in range(0, 3 * quotas.block, 5)]
    assert all(b >= a for one, other in pairwise(counts) for a, b in zip(one, other, strict=True))
    sources, draws = quotas.split(100, 2000)
    assert Counter(sources.tolist()) == Counter(
        {s: b - a for s, (a, b) in enumerate(zip(quotas.before(100), quotas.before(2000), strict=True))}
    )
    for source in range(3):
        first = quotas.before(100)[source]
        mine = draws[sources == source].tolist()
        assert mine == list(range(first, first + len(mine)))


def test_weights_are_samples_whatever_the_sizes() -> None:
    mix = mixture((3, 1), 8)
    drawn = Counter(source_of(mix, number) for _, number in tickets(mix, 0, 200))
    assert abs(drawn[0] - 1200) <= 16
    assert mix.drawn(8 * 40) == [8 * 40 * 6, 8 * 40 * 2]


def test_batches_of_one_source() -> None:
    mix = mixture((3, 1), 8, batches="one_source")
    owners = [{source_of(mix, number) for _, number in mix.rows(step, 0, 8)} for step in range(128)]
    assert all(len(owner) == 1 for owner in owners)
    assert Counter(next(iter(owner)) for owner in owners) == {0: 96, 1: 32}


@pytest.mark.parametrize("options", OPTIONS[:2])
@pytest.mark.parametrize("weights", [(5, 1, 1.5), (1, 1, 1), (20, 1, 2)])
def test_no_batch_holds_a_sample_twice(options: dict[str, Any], weights: tuple[float, ...]) -> None:
    size = 8
    for seed in range(5):
        mix = mixture(weights, size, seed=seed, **options)
        for step in range(120):
            assert len({number for _, number in mix.rows(step, 0, size)}) == size


def test_a_process_reads_slices_of_its_own() -> None:
    sources = [Source(imagined([640] * 20))]
    mix = Mixture(sources, batch_size=64, seed=0, shuffle=BlockShuffleConfig(lanes=8, slice=32, mixed=4))
    assert mix.lanes == 8
    slices = [
        {number // 32 for step in range(100) for _, number in mix.rows(step, rank * 16, rank * 16 + 16)}
        for rank in range(4)
    ]
    for one in range(4):
        for other in range(one):
            assert len(slices[one] & slices[other]) <= 2  # a slice that the border of two lanes cuts


@pytest.mark.parametrize(
    ("size", "samples", "lanes"), [(96, 10**6, 32), (100, 10**6, 25), (7, 10**6, 7), (64, 130, 2), (64, 5, 1)]
)
def test_lanes_divide_the_batch(size: int, samples: int, lanes: int) -> None:
    assert BlockShuffleConfig().lanes_for(size, samples) == lanes


def test_digest_follows_all_that_decides_the_order() -> None:
    made = [
        mixture(),
        mixture((5, 1.5, 1.6)),
        mixture(batches="one_source"),
        mixture(shuffle=BLOCK),
        mixture(shuffle=BLOCK.model_copy(update={"mixed": 3})),
        mixture((1,)),
    ]
    assert len({mix.digest for mix in made}) == 6
    assert mixture(seed=9).digest == mixture().digest
    assert mixture((1,)).digest == imagined(COUNTS["a"], "a").digest


def test_copies_under_two_names_come_in_different_orders() -> None:
    twins = [Source(imagined([40], "a")), Source(imagined([40], "b"))]
    mix = Mixture(twins, batch_size=2, seed=0)
    drawn = tickets(mix, 0, 40)
    one, other = ([n % 40 for _, n in drawn if source_of(mix, n) == s][:30] for s in (0, 1))
    assert one != other


def test_sources_too_small_for_their_weight_are_refused() -> None:
    with pytest.raises(DataError, match=r"source 'b' holds 17 samples, fewer than the 32 .*lower its weight"):
        mixture((1, 1), 64)
    with pytest.raises(DataError, match="source 'b' holds 17 samples, fewer than the 20"):
        mixture((1, 1), 20, batches="one_source")
    with pytest.raises(ValueError, match="got 1e-08 as the smallest share of all weights"):
        mixture((1, 1e-8), 4)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """Three sources with labels 0.., 100.. and 200..; the last one's samples lack a caption."""
    for number, (name, count) in enumerate([("a", 12), ("b", 7), ("c", 9)]):
        (tmp_path / name).mkdir()
        records = [{"__key__": f"{i:03d}", "cls": str(100 * number + i).encode()} for i in range(count)]
        write(tmp_path / name / "0.tar", records)
    sources = {
        name: {"shards": (str(tmp_path / name),), "weight": w} for name, w in [("a", 2.0), ("b", 1.0), ("c", 1.0)]
    }
    return {"sources": sources, "workers": 0}


def build(config: dict[str, Any], size: int = 4) -> TrainStream:
    modalities = {"label": LabelConfig().build("label")}
    return DataConfig(**config).build(modalities, {"label": {"value": 1}}, batch_size=size, seed=0)


def test_a_recipe_names_sources(config: dict[str, Any]) -> None:
    stream = build(config)
    assert stream.epoch_samples == 28
    assert stream.drawn()["a"].samples == 0
    labels: Counter[int] = Counter()
    for _ in range(64):
        batch = next(stream)
        dense = [label % 100 + {0: 0, 1: 12, 2: 19}[label // 100] for label in batch["label"]["value0"].tolist()]
        assert dense == batch.index.tolist()
        labels.update(label // 100 for label in batch["label"]["value0"].tolist())
    assert labels == {0: 128, 1: 64, 2: 64}
    drawn = stream.drawn()
    assert [(name, d.samples, d.share) for name, d in drawn.items()] == [
        ("a", 128, 0.5),
        ("b", 64, 0.25),
        ("c", 64, 0.25),
    ]
    assert drawn["b"].passes == 64 / 7
    again = build(config)
    again.load_state_dict(stream.state_dict())
    assert next(again).keys == next(stream).keys


def test_sources_without_weights_pass_equally_often(config: dict[str, Any]) -> None:
    for source in config["sources"].values():
        del source["weight"]
    stream = build(config)
    for _ in range(16 * 7):
        next(stream)
    assert {d.passes for d in stream.drawn().values()} == {16.0}


def test_substitutes_come_from_the_same_source(config: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "b/0.tar", [{"__key__": f"{i}", "cls": b"100" if i else b"broken"} for i in range(7)])
    stream = build(config | {"on_error": "substitute", "max_failures": 1.0})
    faults = [fault for _ in range(60) for fault in next(stream).faults]
    assert len(faults) >= 3
    assert all("b/0.tar" in str(fault.substitute) for fault in faults)


@pytest.mark.parametrize("batches", ["mixed", "one_source"])
def test_a_whole_source_may_lack_a_modality(config: dict[str, Any], tmp_path: Path, batches: str) -> None:
    write(tmp_path / "a/0.tar", [{"__key__": f"{i}", "cls": b"1", "txt": b"a caption"} for i in range(12)])
    modalities = {"label": LabelConfig().build("label"), "text": TextConfig().build("text")}
    data = DataConfig(**config, optional=("text",), batches=batches)
    stream = data.build(modalities, {"label": {"value": 1}, "text": {"tokens": 1}}, batch_size=4, seed=0)
    for _ in range(12):
        batch = next(stream)
        has = batch.present["text"].tolist() if "text" in batch.present else [True] * 4
        assert has == [number < 12 for number in batch.index.tolist()]
        assert batch["text"]["tokens0"].shape == (4, 77)


def test_one_shard_in_two_sources_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "link.tar").symlink_to(tmp_path / "a/0.tar")
    config["sources"]["c"]["shards"] = (str(tmp_path / "link.tar"),)
    with pytest.raises(DataError, match="is in 'a' and in 'c'"):
        build(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": ("x",)}, "got both of `shards` and `sources`"),
        ({"sources": None}, "got neither of `shards` and `sources`"),
        ({"sources": None, "shards": ("x",), "batches": "one_source"}, "no effect"),
        ({"sources": {"a": {"shards": ("x",)}, "b": {"shards": ("y",), "weight": 1.0}}}, "but none for a:"),
        ({"sources": {"a": {"shards": ("x",), "weight": 0.0}}}, "greater than 0"),
        ({"sources": {"a/b": {"shards": ("x",)}}}, "should match pattern"),
    ],
)
def test_configs_that_cannot_be_meant(config: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**(config | change))
