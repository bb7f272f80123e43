"""The proof of the audit: every sample once an epoch, and equal tensors, for any number of processes and workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.core.errors import DataError
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modality import Modality
from mmssl.data.shards.index import ShardIndex
from mmssl.data.shards.local import LocalReader
from mmssl.data.stream.audit import Audit, count_uses, fingerprint, read_audit
from mmssl.data.stream.batches import TrainStream
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.mixture import BlockShuffleConfig
from mmssl.data.stream.sources import Source
from mmssl.data.stream.workers import Workers
from tests.data.make import encode, noise, write

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
IMAGE = """{"size": 8, "views": {
    "crop": {"kind": "resized_crop", "scale": [0.3, 1.0]},
    "order": {"kind": "order", "patch_size": 4}}}"""
MODALITIES: dict[str, Modality] = {"image": ImageConfig.model_validate_json(IMAGE).build("image")}
NEEDS = {"image": {"crop": 1, "order": 1}}
G = 8
LAYOUTS = {"uneven": [9, 1, 14, 5, 7, 3], "few": [20, 17], "one": [37]}
Make = Callable[..., TrainStream]


@pytest.fixture(scope="module", params=list(LAYOUTS))
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp(request.param)
    for number, count in enumerate(LAYOUTS[request.param]):
        keys = [f"{number}-{i}" for i in range(count)]
        pictures = [encode(noise(100 * number + i, 12, 16)) for i in range(count)]
        write(folder / f"{number}.tar", [{"__key__": k, "jpg": p} for k, p in zip(keys, pictures, strict=True)])
    return ShardIndex.open([folder])


def run(
    index: ShardIndex | Sequence[Source],
    audit: Path,
    steps: int,
    *,
    world: int = 1,
    workers: int = 0,
    state: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """All tensors of each global batch, and the state after it, with the ranks of a world run one after the other."""
    shares: list[list[Batch]] = []
    for rank in range(world):
        how = Workers(workers, start_method="fork")
        options |= {"batch_size": G, "seed": 1, "workers": how, "audit": audit, "rank": rank, "world": world}
        stream = TrainStream(index, MODALITIES, NEEDS, **options)
        if state is not None:
            stream.load_state_dict(state)
        shares.append([next(stream) for _ in range(steps)])
        after = stream.state_dict()
        stream.close()
    return [torch.cat([flat(batch) for batch in parts]) for parts in zip(*shares, strict=True)], after


def flat(batch: Batch) -> torch.Tensor:
    """[B, all numbers of a row]."""
    views = [batch.index, *(x for name, x in sorted(batch["image"].items()))]
    return torch.cat([x.reshape(len(batch), -1).to(torch.int64) for x in views], dim=1)


def assert_once(folder: Path, samples: int, steps: int) -> None:
    """The audit tells of `steps` whole batches, in which each epoch, but for the unfinished last, has every sample once."""
    records = list(read_audit(folder))
    used = count_uses(records)
    whole, rest = divmod(steps * G, samples)
    assert set(used.values()) == {1}
    assert used.total() == steps * G
    assert {(epoch, n) for epoch in range(whole) for n in range(samples)} <= used.keys()
    assert sum(epoch == whole for epoch, _ in used) == rest


STEPS = 15  # more than three epochs
Plain = tuple[list[torch.Tensor], dict[int, str]]


@pytest.fixture(scope="module")
def plain(index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """Tensors of one process without workers, and the fingerprint of each batch in its audit."""
    audit = tmp_path_factory.mktemp("plain")
    tensors, _ = run(index, audit, STEPS)
    return tensors, {record["step"]: record["batch"] for record in read_audit(audit)}


@pytest.mark.parametrize("workers", [0, 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5))])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_cluster_gives_the_same_tensors_and_each_sample_once(
    index: ShardIndex, plain: Plain, world: int, workers: int, tmp_path: Path
) -> None:
    expected, prints = plain
    other, _ = run(index, tmp_path, STEPS, world=world, workers=workers)
    assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))
    assert_once(tmp_path, len(index), STEPS)
    assert all(record["batch"] == prints[record["step"]] for record in read_audit(tmp_path))
    assert len(list(tmp_path.glob("*.jsonl"))) == world


def test_an_interrupted_run_on_other_clusters_is_one_run(index: ShardIndex, tmp_path: Path) -> None:
    whole, _ = run(index, tmp_path / "whole", 16)
    _, saved = run(index, tmp_path / "parts", 5, world=4)
    first, _ = run(index, tmp_path / "parts", 4, world=2, workers=2, state=saved)  # goes further than it saves
    second, _ = run(index, tmp_path / "parts", 11, workers=1, state=saved)
    assert all(torch.equal(a, b) for a, b in zip(whole[5:9], first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], second, strict=True))
    assert_once(tmp_path / "parts", len(index), 16)


@pytest.mark.parametrize("batches", ["mixed", "one_source"])
@pytest.mark.parametrize("shuffle", [None, BlockShuffleConfig(lanes=4, slice=4, mixed=2)])
def test_mixtures_are_the_same_everywhere(tmp_path: Path, batches: str, shuffle: BlockShuffleConfig | None) -> None:
    sources = []
    for name, weight, count in (("a", 3.0, 23), ("b", 1.0, 16)):
        (tmp_path / name).mkdir()
        write(
            tmp_path / name / "0.tar",
            [{"__key__": f"{name}{i}", "jpg": encode(noise(i, 12, 16))} for i in range(count)],
        )
        sources.append(Source(ShardIndex.open([tmp_path / name], source=name), weight))
    options = {"batches": batches, "shuffle": shuffle}
    plain, _ = run(sources, tmp_path / "1", 12, **options)
    _, saved = run(sources, tmp_path / "1", 6, **options)
    other, _ = run(sources, tmp_path / "4", 12, world=4, workers=2, **options)
    rest, _ = run(sources, tmp_path / "1", 6, world=2, state=saved, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain[6:], rest, strict=True))
    assert set(count_uses(read_audit(tmp_path / "1")).values()) == {1}


def test_a_resume_late_in_an_epoch_reads_no_more_than_a_cold_start(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = TrainStream(index, MODALITIES, NEEDS, batch_size=1, seed=1)
    late = stream.state_dict() | {"step": int(0.9 * len(index))}
    assert len(json.dumps(late)) < 1000
    reads: list[int] = []
    read = LocalReader.read
    monkeypatch.setattr(LocalReader, "read", lambda self, *place: reads.append(place[0]) or read(self, *place))
    next(stream)
    cold = len(reads)
    again = TrainStream(index, MODALITIES, NEEDS, batch_size=1, seed=1)
    again.load_state_dict(late)
    next(again)
    assert cold == 1  # one sample with one member
    assert len(reads) == 2 * cold


@pytest.mark.parametrize("absolute", [False, True])
def test_a_relative_folder_of_the_audit_is_one_of_the_run(index: ShardIndex, tmp_path: Path, absolute: bool) -> None:
    audit = tmp_path / "elsewhere" if absolute else Path("used")
    config = DataConfig(shards=tuple(map(str, index.shards)), workers=0, audit=audit)
    stream = config.build(MODALITIES, NEEDS, batch_size=4, seed=0, folder=tmp_path / "run")
    next(stream)
    stream.close()
    assert len(list(read_audit(audit if absolute else tmp_path / "run/used"))) == 1


def test_an_audit_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no audit"):
        list(read_audit(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set another folder"):
        Audit(tmp_path / "file", 0, 1, 0)
    (tmp_path / "rank00000.jsonl").write_text('{"step": 0}\n{"ste')
    with pytest.raises(DataError, match="line 2"):
        list(read_audit(tmp_path))
    Audit(tmp_path, 0, 1, 5).close()
    assert (tmp_path / "rank00000.jsonl").read_text() == '{"step": 0}\n'
    assert fingerprint([(0, 1), (0, 2)]) != fingerprint([(0, 2), (0, 1)])
