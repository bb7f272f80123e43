"""The command line, as a user would run it: verbs, files, exit codes."""

from __future__ import annotations

import io
import json
import re
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import mmssl
from mmssl.training.checkpoints.read import checkpoints, load_weights, resolve
from pipelines.doctor import _triton
from tests.data.make import encode, noise, write
from tests.pipelines.conftest import World


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_what_it_promises(world: World) -> None:
    assert [path.name for path in checkpoints(world.run / "checkpoints")] == ["step_00000006", "step_00000003"]
    report = (world.run / "report.html").read_text()
    assert "image to text" in report
    metrics = lines(world.run / "metrics.jsonl")
    assert [m["step"] for m in metrics if "loss" in m][-1] == 6
    assert any("retrieval/image_to_text_R@1" in m for m in metrics)
    resolved = mmssl.find_recipe(str(world.run / "checkpoints/step_00000006/recipe.yaml"))
    assert resolved == mmssl.find_recipe(str(world.recipe)) == mmssl.find_recipe(str(world.run / "recipe.yaml"))


def test_the_saved_recipe_runs_as_it_is(world: World, tmp_path: Path) -> None:
    saved = world.run / "checkpoints/step_00000006/recipe.yaml"
    assert world.mmssl("pretrain", saved, f"output={tmp_path}") == 0
    first, again = (lines(folder / "metrics.jsonl") for folder in (world.run, tmp_path / "tiny"))
    losses = [[m["loss"] for m in run if "loss" in m] for run in (first, again)]
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 3


def test_resume_goes_on_and_never_refuses(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world.copy_of_run(tmp_path / "tiny")
    assert world.pretrain(f"output={tmp_path}", "duration=8 steps") == 0
    assert (tmp_path / "tiny/checkpoints/step_00000008").is_dir()
    assert "at step 6" in capfd.readouterr().err
    assert world.mmssl("pretrain", world.recipe, f"output={tmp_path}", "--resume", "never") == 2
    assert world.mmssl("pretrain", world.recipe, f"output={tmp_path / 'new'}", "--resume", world.run) == 0
    assert (
        world.mmssl("pretrain", world.recipe, f"output={tmp_path / 'new'}", "duration=7 steps", "--resume", world.run)
        == 0
    )
    assert (tmp_path / "new/tiny/checkpoints/step_00000007").is_dir()


def test_dry_run_writes_nothing(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("pretrain", world.recipe, f"output={tmp_path / 'dry'}", "--dry-run") == 0
    assert not (tmp_path / "dry").exists()
    said = capfd.readouterr().err
    assert "view image/crop0: torch.uint8 [16, 3, 32, 32]" in said
    assert "6 steps of 16 samples" in said


def test_evaluate_by_flags_and_by_suite(world: World, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
    shards, out = world.shards, tmp_path / "results.json"
    flags = ["--zero-shot", shards / "test", "--classnames", names, "--retrieval", shards / "test"]
    probe = ["--linear-probe", shards / "train", shards / "test"]
    assert world.mmssl("evaluate", world.run, *flags, *probe, "--out", out) == 0
    results = json.loads(out.read_text())
    assert results["zero_shot"]["chance"] == 0.1
    assert results["retrieval"]["n"] == 32
    assert 0 <= results["linear_probe"]["acc1"] <= 1
    assert world.mmssl("evaluate", world.run, "--relations", shards / "test", "--out", tmp_path / "card") == 0
    card = json.loads((tmp_path / "card/relations.json").read_text())
    assert {"target_modality", "modality_gap", "compositionality"} <= {row["relation"] for row in card["card"]}
    assert card["scores"]["image_to_text_R@1"] == results["retrieval"]["image_to_text_R@1"]
    suite = tmp_path / "suite.yaml"
    kind = {"kind": "retrieval", "shards": [str(shards / "test")], "pair": ["image", "text"]}
    suite.write_text(json.dumps({"evaluators": {"retrieval": kind}}))
    checkpoint = world.run / "checkpoints/step_00000006"
    assert world.mmssl("evaluate", checkpoint, suite, "--out", out) == 0
    assert json.loads(out.read_text())["retrieval"] == results["retrieval"]


def test_evaluate_without_a_suite_runs_the_recipes_own_evaluators(world: World, tmp_path: Path) -> None:
    """On the trained model, or on the untrained one of a recipe."""
    out = tmp_path / "results.json"
    assert world.mmssl("evaluate", world.run, "--out", out) == 0
    trained = json.loads(out.read_text())
    assert world.mmssl("evaluate", world.recipe, "--out", out) == 0
    untrained = json.loads(out.read_text())
    assert trained.keys() == untrained.keys() == {"checkpoint", "records", *mmssl.load(world.run).recipe.evaluators}
    assert (untrained["checkpoint"], "step_" in trained["checkpoint"]) == ("untrained", True)
    assert trained != untrained | {"checkpoint": trained["checkpoint"]}
    started = tmp_path / "started.yaml"
    started.write_text(json.dumps({**json.loads(world.recipe.read_text()), "weights": str(world.run)}))
    assert world.mmssl("evaluate", started, "--out", out) == 0
    origin = {"checkpoint": f"started from {world.run}"}
    records = {name: record | origin for name, record in trained["records"].items()}
    assert json.loads(out.read_text()) == trained | origin | {"records": records}
    assert world.mmssl("evaluate", "audio_text/clap_small", "--device", "cpu") == 2, "that recipe has none"


def test_evaluate_on_several_captions_a_sample(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Though the model was trained on one: how samples are read may be changed, and what was trained may not."""
    with (
        tarfile.open(sorted((world.shards / "test").glob("*.tar"))[0]) as made,
        tarfile.open(tmp_path / "several.tar", "w") as several,
    ):
        for member in made:
            data = made.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith(".txt"):
                data += b"\na second caption\n"
                member.size = len(data)
            several.addfile(member, io.BytesIO(data))
    out = tmp_path / "results.json"
    flags = ["--retrieval", tmp_path, "--out", out]
    assert world.mmssl("evaluate", world.run, *flags) == 3, "nothing says what the lines are"
    assert "modalities.text.captions: 16 of the first 16 texts have several lines" in capfd.readouterr().err
    assert world.mmssl("evaluate", world.run, "modalities.text.captions=whole", *flags) == 0
    one = json.loads(out.read_text())["retrieval"]
    for model in (world.run, world.recipe):
        assert world.mmssl("evaluate", model, "modalities.text.captions=lines", *flags) == 0
        assert json.loads(out.read_text())["retrieval"]["n_text"] == 2 * one["n_text"] == 32
    capfd.readouterr()
    for wrong, said in (
        ("modalities.text.caption=lines", "captions"),
        ("objective.embedding=8", "wanted a key below modalities. or evaluators."),
    ):
        assert world.mmssl("evaluate", world.run, wrong, *flags) == 2
        assert said in capfd.readouterr().err
    assert world.mmssl("evaluate", world.run, "a.yaml", "b.yaml") == 2
    assert "wanted one suite" in capfd.readouterr().err


def test_embed_equals_the_python_face(world: World, tmp_path: Path) -> None:
    assert world.mmssl("embed", world.run, "--shards", world.shards / "test", "--out", tmp_path) == 0
    images, owners = np.load(tmp_path / "image.npy"), np.load(tmp_path / "image.samples.npy")
    keys = (tmp_path / "keys.txt").read_text().split()
    assert images.shape == (32, 16)
    assert owners.tolist() == list(range(32))
    assert len(keys) == 32
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == {"image": 32, "text": 32}
    model = mmssl.load(world.run)
    from mmssl.data.shards.index import ShardIndex

    sample = ShardIndex.open([str(world.shards / "test")]).read(5)
    embedded = model.encode(image=sample.fields["jpg"], text=sample.fields["txt"].decode())
    np.testing.assert_allclose(embedded["image"][0].numpy(), images[5], atol=1e-5)
    np.testing.assert_allclose(embedded["text"][0].numpy(), np.load(tmp_path / "text.npy")[5], atol=1e-5)
    (tmp_path / "five.picture").write_bytes(sample.fields["jpg"])
    embedded = model.encode(image=[str(tmp_path / "five.picture"), tmp_path / "five.picture"])
    np.testing.assert_allclose(embedded["image"].numpy(), images[[5, 5]], atol=1e-5)
    with pytest.raises(ValueError, match=r"image input 1: missing\.jpg: it does not exist"):
        model.encode(image=[sample.fields["jpg"], "missing.jpg"])


def test_embed_says_what_no_sample_has(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    records = ({"__key__": f"{i}", "jpg": encode(noise(i))} for i in range(3))
    pictures = write(tmp_path / "pictures.tar", records)
    given = ("embed", world.run, "--shards", pictures, "--out", tmp_path / "out")
    assert world.mmssl(*given, "--modality", "text") == 3
    assert "has 'text': of 3" in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    assert world.mmssl(*given) == 0
    assert "text: no sample has it, so it has no file" in capfd.readouterr().err
    table = ["samples.parquet"] if find_spec("pyarrow") else []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "image.npy", "image.samples.npy", "keys.txt", "manifest.json", *table
    ]  # fmt: skip


def test_shards_verbs(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "small.npz", images=pixels, labels=np.arange(12) % 3, classes=np.array(["cat", "dog", "owl"]))
    out = tmp_path / "packed"
    assert world.mmssl("shards", "pack", tmp_path / "small.npz", out, "--template", "a picture of a {}") == 0
    assert world.mmssl("shards", "index", out) == 0
    assert world.mmssl("shards", "check", out, "--json", tmp_path / "check.json") == 0
    assert json.loads((tmp_path / "check.json").read_text())["samples"] == 12
    assert world.mmssl("shards", "stats", out, "--json", tmp_path / "stats.json") == 0
    assert world.mmssl("shards", "pack", tmp_path / "small.npz", out, "--template", "no place") == 3
    data = (out / "000000.tar").read_bytes()
    (out / "000000.tar").write_bytes(data[: len(data) // 2])
    assert world.mmssl("shards", "check", out, "--json", tmp_path / "bad.json") == 3
    bad = json.loads((tmp_path / "bad.json").read_text())
    assert not bad["ok"]
    assert bad["fault_counts"]["damaged tar"] == 1
    figures = json.loads((tmp_path / "stats.json").read_text())
    pictures = figures["modalities"]["image"]
    assert len(pictures["mean"]) == len(pictures["std"]) == 3
    assert figures["fields"]["png"]["count"] == 12
    assert figures["rate"] > 0
    capfd.readouterr()


def test_doctor(world: World, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert world.mmssl("doctor") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "torch" in said
    assert "backends: gloo" in said
    assert "launched as process 2 of 4" in said
    assert re.search(r"HEIC pictures are (decoded|not decoded \(.*\): pip install 'mmssl\[heic\]')", said)
    assert re.search(r"torchcodec (decodes: videos may|does not decode \(.*\): videos use)", said)
    assert "parallel: auto means ddp" in said
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert world.mmssl("doctor") == 2
    assert "the launcher asks for FSDP version 1" in " ".join(capfd.readouterr().out.split())


def test_doctor_says_whether_kernels_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.doctor.find_spec", lambda name: None)
    assert _triton().state == "note"
    monkeypatch.setattr("pipelines.doctor.find_spec", lambda name: object())
    assert _triton().state == "ok"


@pytest.mark.parametrize("verb", ["quickstart", "pretrain", "evaluate", "embed", "doctor"])
def test_help_shows_examples(world: World, verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl(verb, "--help") == 0
    assert f"mmssl {verb}" in capfd.readouterr().out


def test_a_run_may_start_from_a_whole_trained_model(world: World, tmp_path: Path) -> None:
    start = (f"weights={world.run}", "optimizer.lr=1e-30", "duration=2 steps", "evaluators={}")
    assert world.mmssl("pretrain", world.recipe, f"output={tmp_path}", *start) == 0
    old, new = (load_weights(resolve(run, "last")) for run in (world.run, tmp_path / "tiny"))
    assert all(new[name].equal(tensor) for name, tensor in old.items()), "encoders, heads and temperature"
    assert mmssl.load(tmp_path / "tiny").recipe.weights == world.run
    assert world.mmssl("pretrain", world.recipe, f"output={tmp_path / 'no'}", "weights=nowhere.safetensors") == 4
