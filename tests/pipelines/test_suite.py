"""Suites: CLIP_benchmark's layout as it is, shipped suites, and results that are kept."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmssl
from mmssl.core.errors import DataError, RecipeError
from mmssl.recipe.load import start_of
from mmssl.recipe.shipped import find_recipe, shipped_suites
from mmssl.recipe.suite import find_suite
from pipelines.evaluate_flags import split_of
from tests.evaluation.world import write_shard
from tests.pipelines.conftest import World

NAMES = ("zero", "one", "two", "three", "four", "five")


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def vector(*ones: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.isin(np.arange(len(NAMES)), ones).astype(np.int64))
    return file.getvalue()


def make_set(folder: Path, kind: str, n: int = 12, names: Sequence[str] = NAMES) -> Path:
    """A test set in CLIP_benchmark's layout, of two shards."""
    members: Any = {
        "single": lambda i: {"cls": str(i % 6).encode()},
        "multilabel": lambda i: {"npy": vector(i % 6, i % 5)},
        "retrieval": lambda i: {"txt": f"the digit {NAMES[i % 6]}\npicture {i}".encode()},
    }[kind]
    samples = [(f"s{i:07d}", {"png": picture(i), **members(i)}) for i in range(n)]
    write_shard(folder / "test/0.tar", samples[: n // 2])
    write_shard(folder / "test/1.tar", samples[n // 2 :])
    (folder / "test/nshards.txt").write_text("2")
    if kind != "single":
        (folder / "dataset_type.txt").write_text(kind)
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
        (folder / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\nthe digit {c}\n")
    return folder


def table(stem: Path) -> list[dict[str, Any]]:
    """Rows of a table that is parquet where pyarrow is installed, and CSV elsewhere."""
    (path,) = stem.parent.glob(f"{stem.name}.*")
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()
        return rows
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for kind in ("single", "multilabel", "retrieval"):
        make_set(tmp_path / "sets" / kind, kind)
    return tmp_path / "sets"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_folder_of_sets_is_measured_and_what_is_done_is_kept(
    world: World, sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert world.mmssl("evaluate", world.run, sets, "--out", out) == 0
    single, several, retrieval = (read(out / f"{name}.json") for name in ("single", "multilabel", "retrieval"))
    assert (single["scores"]["n"], single["scores"]["classes"]) == (12, 6)
    assert single["facts"]["templates"] == ["a photo of {c}.", "the digit {c}"]
    assert [row["class"] for row in single["classes"]] == list(NAMES)
    assert (several["scores"]["n"], several["scores"]["n_labels"]) == (12, 19)
    assert (retrieval["scores"]["n_image"], retrieval["scores"]["n_text"]) == (12, 24), "two captions, one a line"
    rows = table(out / Path(single["files"]["samples"]).stem)
    assert len(rows) == 12
    assert sum(int(row["acc1"]) for row in rows) / 12 == pytest.approx(single["scores"]["acc1"])
    assert rows[0]["key"] == "s0000000"
    assert (out / "results.md").read_text().startswith("| task | metric | value |")
    assert len(list(csv.DictReader((out / "results.csv").open()))) == 4
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    capfd.readouterr()
    make_set(sets / "single", "single", n=14)
    assert world.mmssl("evaluate", world.run, sets, "--out", out) == 0
    assert capfd.readouterr().err.count("done before, in ") == 2, "other data are measured anew"
    changed = [path.stem for path in out.glob("*.json") if path.stat().st_mtime_ns != times[path]]
    assert changed == ["single"]
    assert read(out / "single.json")["scores"]["n"] == 14


def test_one_file_has_the_records_of_a_folder(world: World, sets: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "new/folder", tmp_path / "new/all.json"
    for out in (folder, file):
        assert world.mmssl("evaluate", world.run, sets, "--out", out) == 0
    written = read(file)
    assert list(written) == ["checkpoint", "multilabel", "retrieval", "single", "records"]
    for task, record in written["records"].items():
        assert record == read(folder / f"{task}.json") | {"files": {}}
        assert record["scores"] == written[task]
    single = written["records"]["single"]
    assert single["facts"]["templates"] == ["a photo of {c}.", "the digit {c}"]
    assert len(single["classes"]) == 6
    assert single["model"] == mmssl.load(world.run).digest()
    assert {"mmssl", "torch", "numpy"} <= single["versions"].keys()
    assert len(single["facts"]["data"]) == 1


def test_flags_take_the_test_split_of_a_set(world: World, sets: Path, tmp_path: Path) -> None:
    flags = ("--zero-shot", sets / "single", "--retrieval", sets / "retrieval", "--linear-probe", sets / "single/test")
    assert world.mmssl("evaluate", world.run, *flags, sets / "single", "--out", tmp_path / "all.json") == 0
    records = read(tmp_path / "all.json")["records"]
    assert records["zero_shot"]["evaluator"]["shards"] == [str(sets / "single/test")]
    assert records["zero_shot"]["facts"]["templates"] == ["a photo of {c}.", "the digit {c}"]
    assert (records["zero_shot"]["scores"]["n"], records["retrieval"]["scores"]["n_text"]) == (12, 24)
    assert records["linear_probe"]["evaluator"]["shards"] == [str(sets / "single/test")]
    assert split_of("nowhere/at/all") == "nowhere/at/all"
    assert split_of(str(sets / "single"), "train") == str(sets / "single")


@pytest.mark.parametrize("out", ["folder", "folder/inside", "results/all.json"])
def test_a_failed_command_leaves_nothing(world: World, tmp_path: Path, out: str) -> None:
    assert world.mmssl("evaluate", tmp_path / "nothing", "--out", tmp_path / out) == 4
    assert not list(tmp_path.iterdir())


def test_a_set_that_cannot_be_used_is_a_row(
    world: World, sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (sets / "single/test/1.tar").unlink()
    suite = tmp_path / "suite.yaml"
    suite.write_text("sets: [single, retrieval, nowhere]\n")
    assert world.mmssl("evaluate", world.run, suite, "--data", sets, "--out", tmp_path / "out") == 3
    said = " ".join(capfd.readouterr().err.split())
    assert "has 1 shards, and its nshards.txt says '2': fetch the missing ones" in said
    assert "nowhere is no folder; wanted test/0.tar" in said
    assert "Traceback" not in said
    assert read(tmp_path / "out/retrieval.json")["scores"]["n"] == 12
    tasks = [row["task"] for row in csv.DictReader((tmp_path / "out/results.csv").open())]
    assert tasks == ["single", "retrieval", "retrieval", "nowhere"]
    suite.write_text("sets: [retrieval, nowhere]\non_missing: skip\n")
    assert world.mmssl("evaluate", world.run, suite, "--data", sets) == 0


def test_more_class_names_than_labels_and_fewer(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fewer = make_set(tmp_path / "fewer", "single", names=NAMES[:5])
    assert world.mmssl("evaluate", world.run, fewer) == 3
    assert "has the label 5, wanted 0 ... 4 for 5 class names" in " ".join(capfd.readouterr().err.split())
    fewer = make_set(tmp_path / "several", "multilabel", names=NAMES[:5])
    assert world.mmssl("evaluate", world.run, fewer) == 3
    assert "has 6 entries in 'multi_label', wanted 5" in " ".join(capfd.readouterr().err.split())


def test_damaged_samples_are_counted_with_the_flag(world: World, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "damaged", "single")
    bad = ("s0000099", {"png": b"no picture", "cls": b"1"})
    write_shard(folder / "test/0.tar", [bad, ("s0000000", {"png": picture(0), "cls": b"0"})])
    assert world.mmssl("evaluate", world.run, folder, "--out", tmp_path / "out.json") == 3
    flags = ("--on-error", "skip", "--out", tmp_path / "out.json")
    assert world.mmssl("evaluate", world.run, folder, *flags) == 0
    assert read(tmp_path / "out.json")["damaged"]["n_skipped"] == 1


def test_shipped_suites_are_whole_and_leave_out_what_is_not_there(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert set(shipped_suites()) == {"image_text", "audio_text", "audio_visual"}
    for name, path in shipped_suites().items():
        suite = find_suite(name)
        assert len(set(suite.sets)) == len(suite.sets)
        assert f"mmssl evaluate runs/first {name} --data DATA" in path.read_text()
    with pytest.raises(DataError, match="has none of the folders imagenet1k"):
        find_suite("image_text").configs(tmp_path, {}, ())
    make_set(tmp_path / "flickr8k", "retrieval")
    assert world.mmssl("evaluate", world.run, "image_text", "--data", tmp_path, "--out", tmp_path / "out") == 0
    assert "left out" in caplog.text
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == ["flickr8k.json"]


def test_no_suite_says_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'image_txt' is no suite, did you mean 'image_text'\?"):
        find_suite("image_txt")
    with pytest.raises(RecipeError, match="is a folder without test sets"):
        find_suite(str(tmp_path))


def test_two_models_are_compared(world: World, sets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison"
    assert world.mmssl("compare", world.recipe, world.run, sets, "--out", out, "--resamples", 100) == 0
    assert "difference" in capfd.readouterr().err
    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert {row["task"] for row in rows} == {"single", "multilabel", "retrieval"}
    accuracy = next(row for row in rows if row["metric"] == "acc1")
    assert float(accuracy["difference"]) == pytest.approx(float(accuracy["second"]) - float(accuracy["first"]))
    assert 0 < float(accuracy["mcnemar_p"]) <= 1
    assert {row["group"] for row in csv.DictReader((out / "classes.csv").open())} == set(NAMES)
    assert (out / "compare.md").read_text().count("\n") == len(rows) + 2
    assert r"retrieval & image\_to\_text\_R@1" in (out / "compare.tex").read_text()
    whole = read(out / "compare.json")
    assert len(whole["differences"]) == len(rows) + len(NAMES)
    assert {row["metric"] for row in rows if row["task"] == "multilabel"} == {"LRAP", "mAP", "AUROC"}
    for name, model in (
        ("first", start_of(find_recipe(str(world.recipe), []), device="cpu")),
        ("second", mmssl.load(world.run)),
    ):
        records = whole["records"][name]
        assert {record["model"] for record in records.values()} == {model.digest()}
        assert records["single"]["facts"]["data"]
        mean = next(float(row[name]) for row in rows if row["metric"] == "mAP")
        assert mean == pytest.approx(records["multilabel"]["scores"]["mAP"])
        for task, metric in (("single", "AUROC"), ("retrieval", "text_to_image_mean_rank")):
            score = next(float(row[name]) for row in rows if (row["task"], row["metric"]) == (task, metric))
            assert score == pytest.approx(records[task]["scores"][metric])
    queries = list(csv.DictReader((out / "queries.csv").open()))
    right = [row for row in queries if (row["task"], row["metric"]) == ("single", "acc1")]
    assert [row["key"] for row in right] == [f"s{i:07d}" for i in range(12)]
    assert sum(float(row["difference"]) for row in right) / 12 == pytest.approx(float(accuracy["difference"]))
    assert {row["metric"] for row in queries if row["task"] == "retrieval"} >= {
        "image_to_text_rank",
        "text_to_image_MRR",
    }
    assert whole["unpaired"] == {}


def test_what_cannot_be_paired_is_said(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gap = {"kind": "modality_gap", "shards": [str(world.shards / "test")], "pair": ["image", "text"]}
    suite = tmp_path / "suite.yaml"
    suite.write_text(json.dumps({"evaluators": {"gap": gap}}))
    assert world.mmssl("compare", world.run, world.run, suite, "--out", tmp_path / "out") == 0
    assert "gap: no paired difference, because its scores are of the whole set" in " ".join(
        capfd.readouterr().err.split()
    )
    found = read(tmp_path / "out/compare.json")
    assert found["unpaired"].keys() == {"gap"}
    assert found["records"]["first"]["gap"]["scores"] == found["records"]["second"]["gap"]["scores"]


def test_a_calibration_is_saved_with_the_checkpoint(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = world.copy_of_run(tmp_path / "run")
    model = mmssl.load(run)
    with pytest.raises(ValueError, match="no calibration of image and text for these weights; it has none: run "):
        model.match(image=picture(0), text="a digit")
    assert world.mmssl("evaluate", run, "--calibrate", world.shards / "test", "--out", tmp_path / "out") == 0
    curve = json.loads((tmp_path / "out/calibration.json").read_text())["curve"]
    cosine = float(model.similarity(image=picture(0), text="a digit"))
    known = [[float(row[name]) for row in curve] for name in ("cosine", "probability")]
    assert float(model.match(image=picture(0), text="a digit")) == pytest.approx(np.interp(cosine, *known), abs=1e-6)
    assert model.match(text=["a", "b"], image=[picture(0)]).shape == (2, 1)
    assert float(model.match(image=picture(0), text="a digit", prior=1e-9)) < 0.01
    kept = next(run.rglob("calibration.json"))
    before = kept.read_text()
    kept.unlink()
    capfd.readouterr()
    for said in ("measured again: ", ""):
        assert world.mmssl("evaluate", run, "--calibrate", world.shards / "test", "--out", tmp_path / "out") == 0
        told = capfd.readouterr().err
        assert "done before, in " in told
        assert ("measured again: " in told) == bool(said)
        assert kept.read_text() == before
    kept.write_text("[1]")
    with pytest.raises(mmssl.core.errors.CheckpointError, match="is damaged"):
        model.match(image=picture(0), text="a digit")


def test_scores_by_group_stand_in_the_results(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_set(tmp_path / "grouped", "single")
    samples = [
        (f"g{i}", {"png": picture(i), "cls": str(i % 6).encode(), "json": json.dumps({"half": i // 6}).encode()})
        for i in range(12)
    ]
    write_shard(folder / "test/0.tar", samples[:6])
    write_shard(folder / "test/1.tar", samples[6:])
    assert world.mmssl("evaluate", world.run, folder, "--groups", "json.half", "--out", tmp_path / "out") == 0
    rows = [row for row in read(tmp_path / "out/grouped.json")["groups"] if row["outcome"] == "acc1"]
    assert sorted((row["group"], row["n"]) for row in rows) == [("0", 6), ("1", 6)]
    assert "worst group of acc1: " in capfd.readouterr().err
