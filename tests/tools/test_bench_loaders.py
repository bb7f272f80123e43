"""The comparison of data loaders: its verdicts see loaders that lose, double, reorder, hide or hang, and pass those that do not."""

from __future__ import annotations

import json
import signal
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_loaders
import numpy as np
import pytest
from loaders import scenarios, table
from loaders.adapter import NAMES, CaptionedPicture, Item, LoaderAdapter, LoaderSetting, LoaderStream, NoState, load
from loaders.damage import KINDS, ONLY_TAR, Anatomy, damaged
from loaders.ranks import LoaderJob, run
from loaders.samples import make_samples, write_tars
from loaders.scenarios import BATCH, Scenarios
from loaders.verdicts import Count, difference, epoch_count, harm, mixture_count, new_lines, resumed, same_order, share

SMALL = (48, 12)
LAYOUTS = [(1, 0), (2, 1)]


class Fake(LoaderAdapter):
    """A loader of plain tar files without worker processes, with a fault."""

    package = "mmssl"
    settings = "none"

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def prepare(self, samples: Sequence[CaptionedPicture], folder: Path, per_shard: int) -> None:
        write_tars(samples, folder, per_shard)

    def open(self, setting: LoaderSetting) -> LoaderStream:
        return FakeStream(setting, self.fault)

    def shards(self, folder: Path) -> list[Path]:
        return sorted(folder.glob("*.tar"))


class FakeStream(LoaderStream):
    def __init__(self, setting: LoaderSetting, fault: str) -> None:
        self.fault, self.setting, self.step = fault, setting, 0
        self.order: list[str] = []
        for folder, copies in zip(setting.folders, (1, 2), strict=False):
            for path in sorted(folder.glob("*.tar")) * copies:
                try:
                    with tarfile.open(path) as tar:
                        self.order += [name[:-4] for name in tar.getnames() if name.endswith(".jpg")]
                except tarfile.ReadError as error:
                    if fault == "raises":
                        raise
                    if fault != "hides":
                        print(f"{path}: {error}")
        np.random.default_rng(setting.workers if fault == "reorders" else 0).shuffle(self.order)
        if fault == "loses" and setting.world == 2:
            self.order[0] = self.order[1]

    def batches(self) -> Iterator[list[str]]:
        setting, size = self.setting, self.setting.batch * self.setting.world
        while self.step * size < len(self.order):
            batch = self.order[self.step * size :][:size]
            self.step += 1
            if self.fault == "hangs" and setting.rank == 1:
                signal.pause()
            yield batch[setting.rank * setting.batch :][: setting.batch]

    def items(self, batch: list[str]) -> list[Item]:
        return [(key, "") for key in batch]

    def state(self) -> Any:
        if self.fault == "forgets":
            raise NoState
        return {"step": self.step, "world": self.setting.world}

    def load(self, state: Mapping[str, Any]) -> None:
        if self.fault == "refuses" and state["world"] != self.setting.world:
            raise ValueError(f"got {self.setting.world} processes, wanted {state['world']}")
        self.step = 0 if self.fault == "restarts" else state["step"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "SAVE_AT", {False: 2, True: 2})
    monkeypatch.setattr(scenarios, "KILL_AT", 3)
    monkeypatch.setattr(scenarios, "SAVE_EVERY", 2)
    monkeypatch.setattr(scenarios, "FROM", (2, 0))
    monkeypatch.setattr(scenarios, "TO", {"the same layout": [(2, 0)], "other ranks": [(1, 0)]})


def small(fault: str, folder: Path, **options: Any) -> Scenarios:
    return Scenarios(Fake(fault), folder, sizes=SMALL, layouts=LAYOUTS, seconds=20, **options)


def test_a_faultless_loader_gets_a_faultless_row(tmp_path: Path) -> None:
    bench = small("", tmp_path)
    facts = {name: bench.section(name) for name in ("epoch", "mixture", "resume", "kill")}
    for row in (*facts["epoch"], *facts["mixture"]):
        assert (row["lost"], row["doubled"], row["order"], row["even"]) == (0, 0, True, True)
    assert {row["share"] for row in facts["mixture"]} == {2 / 3}
    assert [row["verdict"] for row in (*facts["resume"], facts["kill"])] == ["exact"] * 5


@pytest.mark.parametrize(
    ("fault", "seen"),
    [("loses", {"lost": 1, "doubled": 1, "order": False}), ("reorders", {"lost": 0, "order": False})],
)
def test_faults_of_an_epoch_are_seen(fault: str, seen: Mapping[str, Any], tmp_path: Path) -> None:
    first, other = small(fault, tmp_path).epoch()
    assert (first["lost"], first["doubled"], first["order"]) == (0, 0, True)
    assert {name: other[name] for name in seen} == seen


@pytest.mark.parametrize(
    ("fault", "same", "other"),
    [
        ("restarts", "silent", "silent"),
        ("refuses", "exact", "refused"),
        ("forgets", "no state", "no state"),
    ],
)
def test_faults_of_a_resume_are_seen(fault: str, same: str, other: str, tmp_path: Path) -> None:
    bench = small(fault, tmp_path)
    assert [row["verdict"] for row in bench.resume()] == [same, other] * 2
    killed = bench.kill()
    assert killed["verdict"] == same
    assert killed["lost"] == 0
    assert killed["doubled"] == (24 if fault == "restarts" else 0)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("", {"lost": 4, "silent": False, "end": "end"}),
        ("hides", {"lost": 4, "silent": True, "end": "end", "reported": ""}),
        ("raises", {"lost": 48, "silent": False, "end": "error"}),
    ],
)
def test_damage_is_told_or_hidden(fault: str, seen: Mapping[str, Any], tmp_path: Path) -> None:
    facts = small(fault, tmp_path, kinds=["empty file"]).damage()["empty file"]
    assert {name: facts[name] for name in seen} == seen


def test_a_loader_that_hangs_is_ended(tmp_path: Path) -> None:
    bench = small("hangs", tmp_path)
    job = LoaderJob(bench.sources[:1], (1.0,), 48, world=2, workers=0, batch=BATCH, steps=4, seconds=1)
    done = run(bench.adapter, job, tmp_path / "run")
    assert done.end == "hangs"
    assert done.ranks[0].end == "steps"
    assert [len(batch) for batch in done.steps()] == [6] * 4


def test_counts() -> None:
    steps = [[("a", ""), ("b", "")], [("a", ""), ("c", "")]]
    assert epoch_count(steps, "abcd") == Count(lost=1, doubled=1)
    assert mixture_count(steps, ["ab", "c"]) == Count(0, 0), "three draws of two: once or twice each"
    assert mixture_count([*steps, steps[0]], ["ab", "cd"]) == Count(0, 0), "one draw of two: never or once each"
    assert mixture_count([*steps, steps[1]], ["ab", "c"]) == Count(lost=1, doubled=1)
    assert difference(steps, [[("a", "")], [("c", ""), ("c", "")]]) == Count(lost=2, doubled=1)
    assert share(steps, "ab") == 0.75
    assert same_order(steps, [step[::-1] for step in steps])
    assert not same_order(steps, steps[::-1])
    assert not same_order(steps, steps[:1])


def test_verdicts() -> None:
    sound, none = {"a": "1", "b": "2"}, Count(0, 0)
    assert resumed("end", "", none, True).verdict == "exact"
    assert resumed("end", "", none, False).verdict == "reordered"
    assert resumed("end", "", Count(0, 1), True).verdict == "silent"
    assert resumed("hangs", "", none, True).verdict == "hangs"
    assert resumed("error", "no", Count(1, 1), True).verdict == "refused"
    assert harm([[("a", "1"), ("b", "3")]], sound, "end", "", []).silent
    assert not harm([[("a", "1"), ("b", "3")]], sound, "end", "", ["a line"]).silent
    assert not harm([[("b", "2"), ("a", "1")]], sound, "end", "", []).silent
    assert harm([[("a", "1")]], sound, "end", "", []).lost == 1
    assert new_lines(["took 3 s at /tmp/x", "bad"], ["took 12 s at /tmp/y/z"]) == ["bad"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_damage_is_some(kind: str, tmp_path: Path) -> None:
    samples = make_samples("a", 5)
    (path,) = write_tars(samples, tmp_path, 5)
    whole = path.read_bytes()
    shard = Anatomy.of(whole, "tar", samples)
    assert (shard.key, whole[slice(*shard.picture)]) == ("a00002", samples[2].jpeg)
    assert whole[slice(*shard.header)].startswith(b"a00002.jpg")
    hurt = damaged(shard, kind)
    assert hurt is not None
    assert hurt != whole
    bodies = [sample.jpeg for sample in samples]
    ends = np.cumsum([28, *map(len, bodies)]).astype(np.uint32)
    flat = np.uint32(5).tobytes() + ends.tobytes() + b"".join(bodies)
    shard = Anatomy.of(flat, "table", samples)
    assert (shard.start, shard.header, shard.table) == (int(ends[2]), (12, 16), (0, 28))
    hurt = damaged(shard, kind)
    assert (hurt is None) == (kind in ONLY_TAR)
    assert hurt != flat


@pytest.mark.parametrize("name", NAMES)
def test_adapters_deliver_what_was_packed(name: str, tmp_path: Path) -> None:
    """The peers that are installed; in an environment of `peer_env.py --env loaders`, all of them."""
    try:
        adapter = load(name)
    except ImportError as error:
        pytest.skip(str(error))
    kinds = ["one byte of a header changed", "20 bits of a picture flipped"]
    bench = Scenarios(adapter, tmp_path, sizes=SMALL, layouts=[(1, 0), (1, 1)], kinds=kinds)
    for row in bench.epoch():
        assert (row["end"] in ("end", "steps"), row["lost"], row["doubled"]) == (True, 0, 0), row["error"]
    damage = bench.damage()
    silent = {"webdataset": [True, True], "Energon": [False, True]}.get(name, [False, False])
    assert [damage[kind]["silent"] for kind in kinds] == silent
    if name == "mmssl":
        assert [(damage[kind]["lost"], damage[kind]["altered"]) for kind in kinds] == [(1, 0)] * 2


def test_mmssl_resumes_on_another_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "FROM", (1, 1))
    monkeypatch.setattr(scenarios, "TO", {"other": [(2, 0)]})
    assert [row["verdict"] for row in Scenarios(load("mmssl"), tmp_path, sizes=SMALL).resume()] == ["exact"] * 2


def test_tables_say_what_was_found(tmp_path: Path) -> None:
    class Here:
        """Answers as a server does."""

        def __init__(self, fault: str) -> None:
            self.name = fault
            self._bench = small(fault, tmp_path / fault, kinds=["empty file"])

        def ask(self, section: str) -> Any:
            about = {"version": "1", "settings": "none"}
            return json.loads(json.dumps(about if section == "about" else self._bench.section(section)))

    sections = {"hides": ("epoch", "damage"), "restarts": ("resume",)}
    loaders = {fault: bench_loaders.examine(Here(fault), asked) for fault, asked in sections.items()}  # type: ignore[arg-type]
    rows = table.properties(loaders).splitlines()
    assert rows[0] == "|  | hides 1 | restarts 1 |"
    assert "| epoch: lost | 0 |  |" in rows
    assert "| epoch: order kept | 2 of 2 |  |" in rows
    assert "| resume, other ranks |  | silent (0 lost, 24 doubled) |" in rows
    assert not any("mixture:" in row or "CPU" in row for row in rows), "sections that nobody ran have no row"
    assert "| empty file | 4 lost, **silent** |  |" in table.damages(loaders).splitlines()
    assert table.settings(loaders) == "- hides 1: none.\n- restarts 1: none."
