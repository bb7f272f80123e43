from __future__ import annotations

import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmssl.core.batch import Batch
from mmssl.core.errors import CheckpointError, DataError
from mmssl.core.sample import Fault, Sample
from mmssl.core.seeding import generator
from mmssl.data.draws import draw_views, make_views
from mmssl.data.modalities.image import ImageConfig, ImageModality
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import Modality
from mmssl.data.samples import iterate, load
from mmssl.data.shards.index import ShardIndex
from mmssl.data.stream.batches import EvalStream, TrainStream
from mmssl.data.stream.collate import Ring, copy_from_shared
from mmssl.data.stream.config import DataConfig
from mmssl.data.stream.workers import Workers
from tests.data.make import encode, noise, pairs

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
IMAGE = """{"size": 16, "views": {
    "crop": {"kind": "resized_crop", "scale": [0.3, 1.0]},
    "order": {"kind": "order", "patch_size": 4}}}"""
MODALITIES: dict[str, Modality] = {
    "image": ImageConfig.model_validate_json(IMAGE).build("image"),
    "text": TextConfig.model_validate_json('{"tokenizer": {"kind": "clip", "context_length": 12}}').build("text"),
    "label": LabelConfig().build("label"),
}
NEEDS = {"image": {"crop": 2, "order": 1}, "text": {"tokens": 1}}
EVAL = {"image": {"eval": 1}, "text": {"eval": 1}, "label": {"eval": 1}}
Shard = Callable[..., Path]


def train(index: ShardIndex, **options: Any) -> TrainStream:
    defaults: dict[str, Any] = {"batch_size": 4, "seed": 5, "world": 1, "rank": 0}
    return TrainStream(index, MODALITIES, NEEDS, **(defaults | options))


def take(stream: TrainStream, count: int) -> list[Batch]:
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    assert torch.equal(one.index, other.index)
    assert one.faults == other.faults
    assert one.views.keys() == other.views.keys()
    for modality, views in one.views.items():
        assert views.keys() == other[modality].keys()
        for name, x in views.items():
            assert torch.equal(x, other[modality][name]), (modality, name)


@pytest.fixture(scope="module")
def index(folder: Path) -> ShardIndex:
    return ShardIndex.open([folder])


def test_shapes_and_types(index: ShardIndex) -> None:
    batch = next(train(index))
    assert {m: {n: (tuple(x.shape), x.dtype) for n, x in views.items()} for m, views in batch.views.items()} == {
        "image": {
            "crop0": ((4, 3, 16, 16), torch.uint8),
            "crop1": ((4, 3, 16, 16), torch.uint8),
            "order0": ((4, 16), torch.int64),
        },
        "text": {"tokens0": ((4, 12), torch.int64)},
    }
    assert batch.keys == tuple(f"{i:04d}" for i in batch.index.tolist())
    assert not torch.equal(batch["image"]["crop0"], batch["image"]["crop1"])


def test_all_views_of_a_sample_come_from_one_decoding(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = ImageModality.decode
    monkeypatch.setattr(ImageModality, "decode", lambda *given: decoded.append(1) or decode(*given))
    batch = next(train(index))
    assert batch["image"].keys() == {"crop0", "crop1", "order0"}
    assert len(decoded) == len(batch) == 4


def test_every_epoch_has_every_sample_once_and_new_crops(index: ShardIndex) -> None:
    stream = train(index)
    rows: list[tuple[int, bytes]] = []
    for batch in itertools.islice(stream, 23):  # 4 epochs of 23 samples
        rows += zip(batch.index.tolist(), [x.numpy().tobytes() for x in batch["image"]["crop0"]], strict=True)
    epochs = [rows[start : start + 23] for start in range(0, 92, 23)]
    for epoch in epochs:
        assert sorted(number for number, _ in epoch) == list(range(23))
    assert len({tuple(number for number, _ in epoch) for epoch in epochs}) == 4
    assert len({crop for _, crop in rows}) == 92
    assert stream.epoch == 4.0
    assert stream.epoch_samples == 23


def test_workers_change_nothing(index: ShardIndex) -> None:
    alone = take(train(index), 9)
    for count in (1, 2):
        for one, other in zip(alone, take(train(index, workers=Workers(count, start_method="fork")), 9), strict=True):
            assert_equal(one, other)


def test_batches_are_those_of_earlier_versions(index: ShardIndex) -> None:
    """Order, random draws and tokens by digest. Pixels are left out: their last bit is the processor's business."""
    digest = hashlib.sha256()
    for batch in take(train(index), 12):
        for key, ordinal in zip(batch.keys, batch.index.tolist(), strict=True):
            digest.update(f"{key} {ordinal};".encode())
        for x in (batch["image"]["order0"], batch["text"]["tokens0"]):
            digest.update(x.numpy().astype("<i8").tobytes())
    for ordinal in range(len(index)):
        rng = generator(5, 1, *index.identity(ordinal), "image", "crop0")
        digest.update(repr(MODALITIES["image"].views["crop"].draw(np.zeros((200, 300, 3), np.uint8), rng)).encode())
    assert digest.hexdigest()[:16] == "ef53900f6b2db92e"


def test_batches_of_workers_are_built_in_memory_that_comes_round(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = take(train(index), 3)
    monkeypatch.setattr("mmssl.data.stream.collate._rings", [Ring(2)])
    monkeypatch.setattr("mmssl.data.stream.workers.copy_from_shared", lambda batch: batch)
    stream = train(index)
    shared = []
    for batch in plain:
        shared.append(next(stream))
        assert_equal(copy_from_shared(shared[-1]), batch)
    first, _, third = (batch["image"]["crop0"] for batch in shared)
    assert first.is_shared()
    assert first.data_ptr() == third.data_ptr()
    assert not plain[0]["image"]["crop0"].is_shared()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_stay_as_they_are_while_later_ones_are_made(index: ShardIndex, prefetch: int) -> None:
    """All batches are kept: memory that workers use again is never that of a batch which was handed out."""
    alone = take(train(index), 12)
    kept = take(train(index, workers=Workers(2, prefetch, start_method="fork")), 12)
    for one, other in zip(alone, kept, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("workers", [Workers(2), Workers(1, start_method="spawn")], ids=["forkserver", "spawn"])
def test_clean_worker_processes_change_nothing(index: ShardIndex, workers: Workers) -> None:
    for one, other in zip(take(train(index), 3), take(train(index, workers=workers), 3), strict=True):
        assert_equal(one, other)


def test_ranks_share_the_same_global_batches(index: ShardIndex) -> None:
    whole = take(train(index), 9)
    for world in (2, 4):
        shares = [take(train(index, world=world, rank=rank), 9) for rank in range(world)]
        for step, batch in enumerate(whole):
            for rank in range(world):
                size = 4 // world
                assert_equal(batch.rows(rank * size, (rank + 1) * size), shares[rank][step])


def test_seed_changes_order_and_crops(index: ShardIndex) -> None:
    one, other = take(train(index), 6), take(train(index, seed=6), 6)
    assert [b.keys for b in one] != [b.keys for b in other]
    assert take(train(index), 1)[0].keys == one[0].keys


def test_crops_do_not_depend_on_the_mount_point(index: ShardIndex, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for one, other in zip(take(train(index), 3), take(train(ShardIndex.open([tmp_path / "link"])), 3), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(index: ShardIndex, workers: int) -> None:
    through = take(train(index), 12)
    first = train(index, workers=Workers(2 - workers, start_method="fork"), world=2, rank=1)
    for _ in range(7):
        next(first)
    state = first.state_dict()
    first.close()
    assert state == {"version": 1, "seed": 5, "digest": index.digest, "batch_size": 4, "step": 7}
    second = train(index, workers=Workers(workers, start_method="fork"))
    second.load_state_dict(state)
    assert second.state_dict() == state
    for one, other in zip(through[7:], take(second, 5), strict=True):
        assert_equal(one, other)


def test_state_comes_before_the_first_batch(index: ShardIndex) -> None:
    stream = train(index)
    state = stream.state_dict()
    next(stream)
    with pytest.raises(ValueError, match="before the first batch"):
        stream.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 9}, "got seed 5 in the data stream, wanted 9 as in the checkpoint"),
        ({"digest": "x"}, "since the run started"),
        ({"batch_size": 8}, "global batch"),
        ({"version": 9}, "another version"),
        ({"step": -1}, "as the state of the data stream"),
        ({"step": 1.5}, "as the state of the data stream"),
        ({"extra": 1}, "as the state of the data stream"),
    ],
)
def test_a_state_of_something_else_is_refused(index: ShardIndex, change: dict[str, Any], message: str) -> None:
    stream = train(index)
    with pytest.raises(CheckpointError, match=message):
        stream.load_state_dict(stream.state_dict() | change)


def test_global_randomness_is_left_alone(index: ShardIndex) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    take(train(index, workers=Workers(1, start_method="fork")), 2)
    list(EvalStream(index, MODALITIES, EVAL, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_that_cannot_be(index: ShardIndex) -> None:
    with pytest.raises(DataError, match="hold 23 samples, fewer than one global batch of 24"):
        train(index, batch_size=24)
    with pytest.raises(ValueError, match="multiple"):
        train(index, batch_size=4, world=3)
    for needs, message in (
        ({"audio": {"crop": 1}}, "got needs for modality 'audio', wanted one of"),
        ({"image": {"crops": 1}}, "did you mean 'crop'"),
        ({"image": {"crop": 0}}, "at least one view"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainStream(index, MODALITIES, needs, batch_size=4, seed=0)


def bad_records() -> list[dict[str, Any]]:
    """20 samples: 3 undecodable, 7 without caption, 11 with an empty one."""
    records = pairs(0, 20)
    records[3]["jpg"] = b"no picture"
    records[7].pop("txt")
    records[11]["txt"] = b"  "
    return records


@pytest.mark.parametrize("workers", [0, 1])
def test_raise_names_the_sample(shard: Shard, workers: int) -> None:
    path = shard(bad_records())
    stream = train(ShardIndex.open([path]), workers=Workers(workers, start_method="fork"))
    with pytest.raises(DataError) as caught:
        take(stream, 5)
    message = str(caught.value)
    assert str(path) in message
    assert "at byte" in message
    assert "shards check" in message
    assert any(
        words in message
        for words in ("undecodable 'jpg' of key '0003'", "missing 'text' of key '0007'", "missing 'txt' of key '0011'")
    )
    assert "Traceback" not in message


def test_substitutes_are_recorded_and_always_the_same(shard: Shard) -> None:
    index = ShardIndex.open([shard(bad_records())])
    stream = train(index, on_error="substitute", max_failures=1.0)
    batches = list(itertools.islice(stream, 10))  # two epochs
    faults = [fault for batch in batches for fault in batch.faults]
    assert {(fault.key, fault.field, fault.reason) for fault in faults} == {
        ("0003", "jpg", "undecodable"),
        ("0007", "text", "missing"),
        ("0011", "txt", "missing"),
    }
    assert stream.faults.total() == len(faults)
    assert stream.faults.keys() == {"undecodable", "missing"}
    for batch in batches:
        assert len(batch) == 4
        assert not {3, 7, 11} & set(batch.index.tolist())
        for fault in batch.faults:
            assert any(fault.substitute and fault.substitute.startswith(key) for key in batch.keys)
    again = take(train(index, on_error="substitute", max_failures=1.0, workers=Workers(2, start_method="fork")), 10)
    for one, other in zip(batches, again, strict=True):
        assert_equal(one, other)
    ours = take(train(index, on_error="substitute", max_failures=1.0, world=2, rank=1), 10)
    for one, other in zip(batches, ours, strict=True):
        assert one.keys[2:] == other.keys


def test_another_sample_takes_the_place_in_every_epoch_and_for_every_fault(shard: Shard) -> None:
    records = pairs(0, 20)
    records[3].pop("cls")
    records[7].pop("cls")
    index = ShardIndex.open([shard(records)])

    def substitutes(seed: int) -> list[dict[str, str]]:
        """For each of ten epochs: key of a sample that cannot be used -> key of the one in its place."""
        options: dict[str, Any] = {"batch_size": 20, "seed": seed, "on_error": "substitute", "max_failures": 1.0}
        stream = TrainStream(index, {"label": MODALITIES["label"]}, {"label": {"value": 1}}, **options)
        batches = itertools.islice(stream, 10)
        return [{fault.key: str(fault.substitute).split()[0] for fault in batch.faults} for batch in batches]

    ours, others = substitutes(0), substitutes(1)
    assert all(epoch.keys() == {"0003", "0007"} for epoch in ours)
    assert all(len({epoch[key] for epoch in ours}) > 3 for key in ("0003", "0007"))
    assert any(epoch["0003"] != epoch["0007"] for epoch in ours)
    assert ours != others


def test_substitutes_are_drawn_until_one_can_be_used(shard: Shard) -> None:
    records = [{"__key__": f"{i:02d}", **({"txt": b"x"} if i % 2 else {"cls": b"1"})} for i in range(20)]
    options: dict[str, Any] = {"batch_size": 20, "seed": 0, "on_error": "substitute", "max_failures": 1.0}
    index = ShardIndex.open([shard(records)])
    batch = next(TrainStream(index, {"label": MODALITIES["label"]}, {"label": {"value": 1}}, **options))
    assert len(batch) == 20
    assert not (batch.index % 2).any()
    assert len(batch.faults) > 12  # some of those in place of the ten cannot be used either


def test_faults_are_judged_by_the_share_that_the_recipe_bears(shard: Shard) -> None:
    records = [{"__key__": f"{i:03d}", **({"cls": b"1"} if i % 8 else {"txt": b"x"})} for i in range(504)]
    index = ShardIndex.open([shard(records)])

    def stream(share: float) -> EvalStream:
        labels = {"label": MODALITIES["label"]}
        return EvalStream(index, labels, {"label": {"eval": 1}}, 504, on_error="skip", max_failures=share)

    assert [len(batch) for batch in stream(1 / 8)] == [441]
    with pytest.raises(DataError, match=r"63 of 504 samples are unusable \(missing: 63\).*share of 0\.12 "):
        list(stream(0.12))


def test_good_rows_are_those_of_a_stream_without_faults(shard: Shard) -> None:
    clean = take(train(ShardIndex.open([shard(pairs(0, 20))])), 5)
    records = pairs(0, 20)
    records[3]["jpg"] = records[3]["jpg"][:-30] + bytes(30)  # same sizes, so the same order
    index = ShardIndex.open([shard(records)])
    dirty = take(train(index, on_error="substitute", max_failures=1.0), 5)
    for one, other in zip(clean, dirty, strict=True):
        for row, number in enumerate(one.index.tolist()):
            if number == 3:  # another picture under the draws of the one that was to be there
                taken = load(index, int(other.index[row]), MODALITIES)
                needs = NEEDS | {"label": {}}
                drawn = draw_views(taken, MODALITIES, needs, (5, 0, *index.identity(3)))
                views = make_views(taken, MODALITIES, needs, drawn)
                assert taken.index != 3
                assert torch.equal(views["image"]["crop0"], other["image"]["crop0"][row])
            else:
                assert torch.equal(one["image"]["crop0"][row], other["image"]["crop0"][row])


def test_too_many_faults_end_the_run(shard: Shard, caplog: pytest.LogCaptureFixture) -> None:
    index = ShardIndex.open([shard(bad_records())])
    stream = train(index, batch_size=10, on_error="substitute", max_failures=0.1)
    with pytest.raises(DataError, match=r"of 500 samples are unusable \(.*missing: \d+.*share of 0\.1 "):
        take(stream, 60)
    assert "undecodable 'jpg' of key '0003'" in caplog.text
    assert caplog.text.count("of key") == 20


def test_shards_without_a_usable_sample_end_the_run(shard: Shard) -> None:
    index = ShardIndex.open([shard([{"__key__": f"{i}", "txt": "x", "jpg": b"bad"} for i in range(5)])])
    with pytest.raises(DataError, match="substitutes for it are unusable too"):
        take(train(index, on_error="substitute", max_failures=1.0), 1)


def test_a_sample_stored_twice_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in [("a.cls", b"1"), ("b.cls", b"2"), ("a.cls", b"3"), ("c.cls", b"4")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    stream = TrainStream(
        ShardIndex.open([path]),
        MODALITIES,
        {"label": {"value": 1}},
        batch_size=3,
        seed=0,
        on_error="substitute",
        max_failures=1,
    )
    batch = next(stream)
    assert {(fault.key, fault.reason, fault.field) for fault in batch.faults} == {("a", "duplicate", "cls")}
    assert set(batch["label"]["value0"].tolist()) == {2, 4}


def test_trouble_with_the_device_is_never_substituted(shard: Shard) -> None:
    path = shard(pairs(0, 20))
    stream = train(ShardIndex.open([path]), on_error="substitute", max_failures=1.0)
    path.unlink()
    with pytest.raises(DataError, match="cannot read"):
        next(stream)


def test_optional_modalities_are_marked(shard: Shard) -> None:
    records = pairs(0, 8)
    for record in records[:3]:
        record.pop("txt")
    stream = train(ShardIndex.open([shard(records)]), batch_size=8, optional=("text",))
    batch = next(stream)
    assert batch.present.keys() == {"text"}
    assert sorted(batch.index[~batch.present["text"]].tolist()) == [0, 1, 2]
    assert batch.faults == ()


def test_fewer_shards_than_workers(shard: Shard) -> None:
    index = ShardIndex.open([shard(pairs(0, 9))])
    batches = take(train(index, workers=Workers(4, start_method="fork"), batch_size=3), 3)
    assert sorted(i for batch in batches for i in batch.index.tolist()) == list(range(9))


@pytest.mark.parametrize("world", [1, 2, 3, 30])
def test_evaluation_sees_every_sample_once_in_order(index: ShardIndex, world: int) -> None:
    seen: list[int] = []
    for rank in range(world):
        stream = EvalStream(index, MODALITIES, EVAL, 4, rank=rank, world=world)
        batches = list(stream)
        assert len(batches) == len(stream)
        assert all(len(batch) == 4 for batch in batches[:-1])
        seen += [i for batch in batches for i in batch.index.tolist()]
    assert seen == list(range(23))


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_of_the_first_samples_decodes_no_others(folder: Path, world: int) -> None:
    seen: list[int] = []
    index = ShardIndex.open([folder])
    streams = [EvalStream(index, MODALITIES, EVAL, 4, limit=10, rank=rank, world=world) for rank in range(world)]
    read = index.read
    numbers: list[int] = []
    index.read = lambda n, *rest: numbers.append(n) or read(n, *rest)  # type: ignore[method-assign, func-returns-value]
    for stream in streams:
        seen += [i for batch in stream for i in batch.index.tolist()]
    assert seen == numbers == list(range(10))
    assert len(EvalStream(index, MODALITIES, EVAL, 4, limit=99)) == 6


def test_evaluation_can_be_repeated_and_knows_lengths(index: ShardIndex) -> None:
    stream = EvalStream(index, MODALITIES, EVAL, 10, Workers(1, start_method="fork"))
    first, second = list(stream), list(stream)
    stream.close()
    for one, other in zip(first, second, strict=True):
        assert_equal(one, other)
    assert first[0].lengths["text"].tolist() == [1] * 10
    assert first[0]["text"]["eval0"].shape == (10, 1, 12)
    assert first[0]["label"]["eval0"].tolist() == list(range(10))


def test_evaluation_never_substitutes(shard: Shard) -> None:
    index = ShardIndex.open([shard(bad_records())])
    with pytest.raises(DataError, match=r"'0003'(?s:.*)skip them with `on_error: skip` of the evaluation"):
        list(EvalStream(index, MODALITIES, EVAL, 4))
    stream = EvalStream(index, MODALITIES, EVAL, 1, on_error="skip")
    batches = list(stream)
    assert [i for batch in batches for i in batch.index.tolist()] == [i for i in range(20) if i not in (3, 7, 11)]
    assert stream.faults == {"undecodable": 1, "missing": 2}
    list(stream)
    assert stream.faults == {"undecodable": 1, "missing": 2}, "of one pass"


def test_samples_one_by_one(shard: Shard) -> None:
    index = ShardIndex.open([shard(bad_records())])
    got = list(iterate(index, MODALITIES))
    assert [type(item) for item in got].count(Fault) == 3
    sample = got[5]
    assert isinstance(sample, Sample)
    assert (sample.key, sample.index, sample.values["label"], tuple(sample.values["text"])) == (
        "0005",
        5,
        5,
        ("scene 5 of many",),
    )
    assert sample.values["image"].shape == (20, 24, 3)
    assert isinstance(got[11], Fault)
    assert str(got[11]).startswith("missing 'txt' of key '0011' (sample 11 at byte ")


def test_a_bug_in_a_view_names_the_sample(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mmssl.data.stream.rows.make_views", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        next(train(index))
    assert "in key" in caught.value.__notes__[0]


def test_views_of_the_first_member_that_is_there(shard: Shard) -> None:
    png = encode(noise(50, 10, 10), "PNG")
    index = ShardIndex.open(
        [shard([{"__key__": "a", "png": png, "jpg": encode(noise(1))}, {"__key__": "b", "png": png}])]
    )
    images = {"image": MODALITIES["image"]}
    assert load(index, 0, images).values["image"].shape == (20, 24, 3)
    assert np.array_equal(load(index, 1, images).values["image"], noise(50, 10, 10))
    views = make_views(load(index, 1, images), images, {"image": {"eval": 1}}, {"image": {"eval0": {}}})
    assert views["image"]["eval0"].shape == (3, 16, 16)


def test_config_builds_the_stream(folder: Path, index: ShardIndex) -> None:
    config = DataConfig.model_validate_json(
        f'{{"shards": ["{folder}/{{000000..000002}}.tar"], "workers": 0, "on_error": "substitute", "max_failures": 0.5}}'
    )
    stream = config.build(MODALITIES, NEEDS, batch_size=4, seed=5)
    assert stream.state_dict() == train(index).state_dict()
    assert len(next(stream)) == 4
    with pytest.raises(ValueError, match="at least 1 item"):
        DataConfig.model_validate_json('{"shards": []}')


def test_a_pass_over_the_training_samples_has_each_once_as_in_the_first_epoch(shard: Shard) -> None:
    """Under its number there, with the random views of it; without those that training substitutes."""
    paths = {"a": shard(pairs(0, 9), "a.tar"), "b": shard(bad_records(), "b.tar")}
    sources = {name: {"shards": [str(path)]} for name, path in paths.items()}
    config = DataConfig(sources=sources, workers=0, on_error="substitute", max_failures=1.0)
    needs = {"image": {"crop": 1, "eval": 1}, "text": {"eval": 1}}
    passed = list(config.pass_over(config.open(), MODALITIES, needs, batch_size=7, seed=5))
    assert "eval0" in passed[0]["image"]
    found = {i: x for batch in passed for i, x in zip(batch.index.tolist(), batch["image"]["crop0"], strict=True)}
    assert [*found] == [i for i in range(29) if i - 9 not in (3, 7, 11)]
    trained = take(config.stream(config.open(), MODALITIES, NEEDS, batch_size=14, seed=5), 2)
    whole = [i for batch in trained for i in batch.index.tolist()]
    compared = 0
    for batch in trained:
        replaced = {fault.row for fault in batch.faults}
        for row, i in enumerate(batch.index.tolist()):
            if row not in replaced and whole.count(i) == 1:
                assert torch.equal(found[i], batch["image"]["crop0"][row])
                compared += 1
    assert compared > 15


def test_a_pass_over_the_training_samples_names_unusable_ones(shard: Shard) -> None:
    config = DataConfig(shards=[str(shard(bad_records()))], workers=0)
    with pytest.raises(DataError, match=r"'0003'(?s:.*)replace them with `data\.on_error: substitute`"):
        list(config.pass_over(config.open(), MODALITIES, EVAL, batch_size=4, seed=5))
