"""What goes wrong is said in one message, with the exit code of its kind, and nothing is lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import webdataset

from tests.pipelines.conftest import World


def shard(path: Path, samples: list[dict[str, object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for i, sample in enumerate(samples):
            writer.write({"__key__": f"{i:04d}", **sample})
    return f"data.shards=[{json.dumps(str(path))}]"


def picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(file, "jpeg")
    return file.getvalue()


GOOD = {"jpg": picture(), "txt": "a red square"}


def says(capfd: pytest.CaptureFixture[str], *words: str) -> None:
    said = capfd.readouterr().err
    for word in words:
        assert word in said, said
    assert "Traceback" not in said


def test_misspelt_keys(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.pretrain("optimizer.lrr=1", f"output={tmp_path}") == 2
    says(capfd, "optimizer.lrr", "did you mean 'lr'")
    assert world.mmssl("pretrain", "image_text/vit_b32") == 2
    says(capfd, "did you mean 'image_text/vit_b_32'")
    assert world.mmssl("pretrian") == 2


def test_options_without_effect(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.pretrain("modalities.image.views.extra={kind: simclr}", f"output={tmp_path}") == 2
    says(capfd, "modalities.image.views.extra", "no effect")
    assert world.pretrain("encoders.image.unlocked_layers=1", f"output={tmp_path}") == 2
    assert world.pretrain("step={kind: accumulated, micro_batches: 2}", f"output={tmp_path}") == 2
    says(capfd, "negatives", "step kind 'cached'")
    assert not list(tmp_path.iterdir())


RESNET = "encoders.image={kind: resnet, size: 32, layers: [1, 1, 1], channels: 8, pool: mean}"


@pytest.mark.parametrize("kind", ["accumulated", "cached"])
def test_micro_batches_of_batch_normalisation(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    assert world.pretrain(RESNET, f"step={{kind: {kind}, micro_batches: 2}}", f"output={tmp_path}") == 2
    says(capfd, "BatchNorm2d 'encoders.image.", "more like it", "Freeze that encoder", "step kind 'plain'")
    assert not list(tmp_path.iterdir())


def test_missing_and_empty_shards(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.pretrain('data.shards=["nowhere/{000..003}.tar"]', f"output={tmp_path}") == 3
    says(capfd, "nowhere/000.tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    assert world.pretrain(f"data.shards=[{json.dumps(str(tmp_path / 'empty.tar'))}]", f"output={tmp_path}") == 3
    says(capfd, "empty.tar")


def test_sample_without_caption(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = shard(tmp_path / "s.tar", [GOOD] * 20 + [{"jpg": picture()}] + [GOOD] * 20)
    assert world.pretrain(where, f"output={tmp_path}") == 3
    says(capfd, "missing", "0020", "s.tar")


def test_undecodable_picture(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    where = shard(tmp_path / "s.tar", [GOOD] * 20 + [{"jpg": b"not a picture", "txt": "x"}] + [GOOD] * 20)
    assert world.pretrain(where, f"output={tmp_path}") == 3
    says(capfd, "undecodable", "0020", "s.tar")
    substitute = ("data.on_error=substitute", "data.max_failures=0.5", "name=substituted")
    assert world.pretrain(where, f"output={tmp_path}", *substitute) == 0
    says(capfd, "undecodable")


def test_fewer_shards_than_workers_is_fine(world: World, tmp_path: Path) -> None:
    where = shard(tmp_path / "s.tar", [GOOD] * 20)
    assert world.pretrain(where, f"output={tmp_path}", "data.workers=2", "duration=2 steps", "evaluators={}") == 0


def test_batch_larger_than_the_data(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.pretrain("batch_size=4096", f"output={tmp_path}") == 3
    says(capfd, "4096", "64 samples")


def test_templates_without_placeholder(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of a {}\na photo\n")
    flags = ("--zero-shot", world.shards / "test", "--classnames", "a,b", "--templates", templates)
    assert world.mmssl("evaluate", world.run, *flags) in (2, 3)
    says(capfd, "templates.txt", "2", "{}")


def test_templates_are_a_file_a_name_or_a_sentence(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"class {number}\n" for number in range(10)))
    given = ("evaluate", world.run, "--zero-shot", world.shards / "test", "--classnames", names, "--templates")
    for templates in ("a photo", str(tmp_path)):
        assert world.mmssl(*given, templates) == 2
        says(
            capfd,
            f"got {templates!r}, which is no file of templates (it ",
            "each with {} for the class name; a list of",
        )
    assert world.mmssl(*given, "a photo of a {}", "--out", tmp_path / "out.json") == 0
    (tmp_path / "one.txt").write_text("a photo of a {}\n")
    assert world.mmssl(*given, tmp_path / "one.txt", "--out", tmp_path / "file.json") == 0
    sentence, file = (json.loads((tmp_path / f"{name}.json").read_text())["zero_shot"] for name in ("out", "file"))
    assert sentence == file


def test_errors_of_evaluators_name_the_option_that_made_them_or_else_the_key(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "s.tar"
    shard(where, [GOOD | {"cls": "7"}] * 4)
    (tmp_path / "again.txt").write_text("one\none\n")
    for option in ("--classnames", "--templates"):
        given = ("--zero-shot", where, "--classnames", "a,b,c,d,e,f,g,h", option, tmp_path / "again.txt")
        assert world.mmssl("evaluate", world.run, *given) == 2
        says(capfd, f"evaluators.zero_shot: {option}: ", f"{tmp_path / 'again.txt'}, line 2")
    assert world.mmssl("evaluate", world.run, "--zero-shot", where) == 2
    says(capfd, f"--classnames: got none, and there is no classnames.txt beside the shards ['{where}']")
    assert world.mmssl("evaluate", world.run, "--zero-shot", where, "--classnames", "a,b") == 3
    says(capfd, "has the label 7, wanted 0 ... 1 for 2 class names: check --classnames")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        f"evaluators: {{zero_shot: {{kind: zero_shot, shards: [{where}], modality: image, classnames: [a, b]}}}}"
    )
    assert world.mmssl("evaluate", world.run, suite) == 3
    says(capfd, "for 2 class names: check `classnames`")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("shards", "check", "{none}.yaml"), "none.yaml: cannot be read: it does not exist"),
        (
            ("shards", "pack", "{file}", "{tmp}/out", "--delimiter", "ab"),
            '--delimiter: got "ab", wanted a string, at least 1',
        ),
        (
            ("shards", "pack", "{file}", "{tmp}/out", "--on-error", "x"),
            "--on-error: got \"x\"; allowed: 'raise' or 'skip'",
        ),
        (
            ("export", "{run}", "--out", "{file}/x"),
            "x: a file of this name, or of a part of its path, is there already",
        ),
        (
            ("compare", "{run}", "{none}"),
            "none', which does not exist; wanted a run or checkpoint folder, a model or a r",
        ),
        (("report", "{run}", "--figures", "{file}/x"), "x': a part of its path is no folder; choose a folder that is"),
        (
            ("evaluate", "{run}", "--retrieval", "{test}", "--out", "{file}/x"),
            "a part of its path is no folder; choose",
        ),
        (
            ("evaluate", "{run}", "--retrieval", "{test}", "--pair", "image,image"),
            "--pair: got ['image', 'image'], wanted",
        ),
        (
            ("evaluate", "{run}", "--retrieval", "{test}", "--pair", "image,txt"),
            "--pair: got 'txt', did you mean 'text'?",
        ),
        (("evaluate", "{run}", "--zero-shot", "{test}", "--modality", "imag"), "--modality: got 'imag', did you mean"),
        (
            ("evaluate", "{run}", "--zero-shot", "{test}", "--classnames", "a,a"),
            "--classnames: classnames[1]: got the cl",
        ),
    ],
)
def test_options_and_files_are_named_without_numbers_of_the_system(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: tuple[str, ...], words: str
) -> None:
    (tmp_path / "file").write_text("a file, and no folder")
    places = {"none": tmp_path / "none", "file": tmp_path / "file", "tmp": tmp_path, "run": world.run}
    assert world.mmssl(*[word.format(**places, test=world.shards / "test") for word in command]) in (2, 3, 4)
    said = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert words in said
    assert "Errno" not in said
    assert "(1 of 1)" not in said, "nothing was measured before"


def test_wrong_checkpoint_for_the_recipe(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world.copy_of_run(tmp_path / "tiny")
    assert world.pretrain(f"output={tmp_path}", "encoders.image.width=48", "duration=9 steps") == 4
    says(capfd, "encoders.image.width: saved 32, now 48")
    assert world.mmssl("evaluate", tmp_path, "--retrieval", world.shards / "test") == 4
    says(capfd, "no checkpoint")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_checkpoint(world: World, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = world.copy_of_run(tmp_path / "tiny")
    file = run / "checkpoints/step_00000006/model.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.unlink() if damage == "remove" else file.write_bytes(data[:-1] if damage == "cut" else data)
    newest = run / "checkpoints/step_00000006"
    assert world.mmssl("evaluate", newest, "--retrieval", world.shards / "test") == 4
    says(capfd, "model.safetensors")
    assert world.pretrain(f"output={tmp_path}") == 0
    said = capfd.readouterr().err
    assert "step 3" in said, "the newest valid one is taken, and that is said"
    assert "model.safetensors" in said


def test_run_folder_that_cannot_be_written(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert world.pretrain(f"output={tmp_path / 'file'}") == 2
    says(capfd, str(tmp_path / "file"))


def test_numbers_that_explode(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    explode = ("optimizer.lr=1e30", "duration=40 steps", "max_bad_steps=3", "schedule.warmup=0 steps", "evaluators={}")
    assert world.pretrain(f"output={tmp_path}", *explode) == 5
    says(capfd, "not finite", "bad_batches.jsonl")
    assert (tmp_path / "tiny/bad_batches.jsonl").read_text().count("keys") == 3


def test_files_that_cannot_be_written_are_refused_before_the_work(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file, and no folder")
    check, evaluate = ("shards", "check", world.shards / "test", "--json"), ("evaluate", world.run, "--out")
    within = tmp_path / "file" / "results.json"
    for command in ((*evaluate, within), (*check, within), (*check, tmp_path)):
        assert world.mmssl(*command) == 2
        said = capfd.readouterr()
        assert "cannot write" in " ".join(said.err.split())
        assert not said.out, "nothing was measured"
    assert world.mmssl("embed", world.run, "--shards", world.shards / "test", "--out", tmp_path / "file" / "out") == 3
    says(capfd, "cannot write", "choose another folder")
    findings = tmp_path / "new" / "findings.json"
    assert world.mmssl("shards", "check", world.shards / "test", "--json", findings) == 0
    assert json.loads(findings.read_text())["samples"] == 32


def test_retrieval_needs_two_modalities(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("evaluate", world.run, "--retrieval", world.shards / "test", "--pair", "image") == 2
    said = " ".join(capfd.readouterr().err.replace("│", " ").split())
    assert "needs two modalities of a shared space: this model has image, text, and --pair is 'image'" in said


def test_calibrations_need_two_modalities(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("evaluate", world.run, "--calibrate", world.shards / "test", "--pair", "image") == 2
    assert "--calibrate needs two modalities" in " ".join(capfd.readouterr().err.replace("│", " ").split())


def test_a_calibration_without_a_checkpoint_is_said_to_be_lost(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert world.mmssl("evaluate", world.recipe, "--calibrate", world.shards / "validation") == 0
    assert "calibration of image and text was not kept: this model has no checkpoint folder" in capfd.readouterr().err


def test_embed_of_a_modality_that_the_model_lacks(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ("embed", world.run, "--shards", world.shards / "test", "--out", tmp_path / "out")
    assert world.mmssl(*given, "--modality", "imag") == 2
    says(capfd, "--modality: got 'imag', did you mean 'image'?; allowed: image, text")
    assert not (tmp_path / "out").exists()


def test_columns_by_another_name(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.csv").write_text("photo,title\n")
    for meaning in ("captions", "capton"):
        command = ("shards", "pack", tmp_path / "table.csv", tmp_path / "out", "--column", f"{meaning}=title")
        assert world.mmssl(*command) == 2
        says(capfd, f"'{meaning}' is none of image, audio", "did you mean 'caption'?")


@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_evaluators_that_cannot_run_are_refused_before_the_first_step(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("zero\none\n")
    zero_shot = {"kind": "zero_shot", "shards": [str(world.shards / "test")], "modality": "image"}
    for evaluator, code, words in [
        (
            {"kind": "retrieval", "shards": ["nowhere.tar"], "pair": ["image", "text"]},
            3,
            ["no such shard", "nowhere.tar"],
        ),
        (zero_shot | {"classnames": str(tmp_path / "lost.txt")}, 2, ["`classnames`", "lost.txt"]),
        (zero_shot | {"classnames": str(names), "templates": str(names)}, 2, ["`templates`", "names.txt", "{}"]),
        (zero_shot | {"classnames": str(names)}, 3, ["has the label", "wanted 0 ... 1 for 2 class names"]),
    ]:
        given = f"evaluators={{measured: {json.dumps(evaluator)}}}"
        assert world.pretrain(given, f"output={tmp_path / 'runs'}", *how) == code
        says(capfd, "evaluators.measured: ", *words)
    assert not list(tmp_path.glob("runs/*/metrics.jsonl"))


def test_the_member_that_a_sample_lacks_is_named_with_the_key(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = [{"input.jpg": GOOD["jpg"], "outputs.txt": GOOD["txt"]}] * 20
    assert world.pretrain(shard(tmp_path / "other.tar", other), f"output={tmp_path}") == 3
    says(capfd, "no sample has 'image'", "got .input.jpg, .outputs.txt", "`modalities.image.extensions: [input.jpg]`")
    some = [{"jpg": GOOD["jpg"], "json": "{}"}] + [GOOD] * 20
    assert world.pretrain(shard(tmp_path / "some.tar", some), f"output={tmp_path}", "duration=2 epochs") == 3
    says(
        capfd,
        "missing 'text' of key '0000'",
        "got .jpg, .json, wanted .txt: if a member holds it, name it in "
        "`modalities.text.extensions`; if samples may lack it, in `data.optional`",
        "mmssl shards check",
    )
