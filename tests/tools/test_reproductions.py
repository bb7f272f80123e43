"""Learning runs and reproductions on sizes that take seconds; views made on the device, against slow code."""

from __future__ import annotations

import colorsys
import io
import json
import math
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import compare_sums
import device_views
import learning
import learning_data
import numpy as np
import pytest
import reproduce_cifar10
import timm
import torch
from device_views import DeviceViews, SimClrLaw
from PIL import Image
from timm.models.resnet import BasicBlock, ResNet

from tests.tools.conftest import RunTool

STILL = SimClrLaw(scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=0.0, grayscale=0.0, flip=0.0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Files like those of CIFAR-10, of flat colours: one of ten for each class, with noise."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = np.arange(40) % 10
        jpegs = []
        for label in labels:
            pixels = (25 * label + random.integers(0, 20, (32, 32, 3))).astype(np.uint8)
            with io.BytesIO() as file:
                Image.fromarray(pixels).save(file, "JPEG")
                jpegs.append(file.getvalue())
        offsets = np.cumsum([0, *map(len, jpegs)])
        data = np.frombuffer(b"".join(jpegs), np.uint8)
        np.savez(tmp_path / f"cifar10-{split}.npz", jpeg=data, offsets=offsets, labels=labels)
    return tmp_path


def noise(count: int, side: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_view_without_changes_is_the_picture() -> None:
    assert torch.equal(STILL(noise(5), draw()), noise(5))


def test_flips_are_exact_and_as_often_as_asked() -> None:
    law = SimClrLaw(scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=0.0, grayscale=0.0, flip=0.25)
    x = noise(4000, 2)
    out = law(x, draw())
    flipped = (out == x.flip(3)).flatten(1).all(1)
    kept = (out == x).flatten(1).all(1)
    assert (flipped | kept).all()
    assert abs(float(flipped.float().mean()) - 0.25) < 0.03


def test_crops_have_the_area_of_the_law_and_lie_inside() -> None:
    """Of a picture whose values are its coordinates, a crop shows where it was taken."""
    side = 64
    ramp = torch.arange(side, dtype=torch.float32) + 0.5
    x = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])
    out = SimClrLaw(scale=(0.25, 0.25), flip=0.5).crop(x.expand(500, -1, -1, -1), draw())
    width = (out[:, 0].amax((1, 2)) - out[:, 0].amin((1, 2))) * side / (side - 1)
    height = (out[:, 1].amax((1, 2)) - out[:, 1].amin((1, 2))) * side / (side - 1)
    torch.testing.assert_close(width * height, torch.full((500,), 0.25 * side**2), rtol=0.05, atol=0)
    ratios = width / height
    assert 0.72 < ratios.min() < 0.8 < 1.25 < ratios.max() < 1.37
    assert out.min() >= 0
    assert out[:, :2].max() <= side
    centres = out[:, 0].mean((1, 2))
    assert centres.min() < 20
    assert centres.max() > side - 20


def test_hue_turns_as_colorsys_turns_it() -> None:
    x = torch.rand(6, 3, 3, 3, generator=draw())
    x[0, :, 0, 0] = 0.5  # grey has no hue
    turns = torch.tensor([0.0, 0.1, -0.1, 0.5, 0.33, -0.4])
    out = device_views.turn_hue(x, turns)
    torch.testing.assert_close(out[0], x[0])
    for i in range(6):
        for row in range(3):
            for column in range(3):
                hue, saturation, value = colorsys.rgb_to_hsv(*x[i, :, row, column].tolist())
                expected = colorsys.hsv_to_rgb((hue + float(turns[i])) % 1, saturation, value)
                torch.testing.assert_close(out[i, :, row, column], torch.tensor(expected), atol=1e-5, rtol=0)


def test_grey_and_jitter_happen_as_often_as_asked() -> None:
    law = SimClrLaw(scale=(1.0, 1.0), ratio=(1.0, 1.0), jitter=0.0, grayscale=0.3, flip=0.0)
    out = law(noise(3000, 2), draw()).int()
    grey = ((out[:, 0] - out[:, 1]).abs() <= 1).flatten(1).all(1)
    assert abs(float(grey.float().mean()) - 0.3) < 0.03


def test_batches_are_functions_of_the_step() -> None:
    stream = DeviceViews(noise(10), 4, 7, {"augmented": (2, SimClrLaw())})
    assert (stream.steps_per_epoch, stream.epoch_samples) == (2, 8)
    batches = iter(stream)
    first = [next(batches) for _ in range(5)]
    assert len({*first[0].index.tolist(), *first[1].index.tolist()}) == 8
    assert not torch.equal(first[0]["image"]["augmented0"], first[0]["image"]["augmented1"])
    other = DeviceViews(noise(10), 4, 7, {"augmented": (2, SimClrLaw())})
    other.load_state_dict({"step": 3})
    again = next(iter(other))
    assert torch.equal(again.index, first[3].index)
    assert torch.equal(again["image"]["augmented1"], first[3]["image"]["augmented1"])
    assert other.state_dict() == {"step": 4}


def test_the_network_of_cifar_keeps_the_size_of_its_pictures() -> None:
    model = reproduce_cifar10.CifarResNet().eval()
    shapes: list[torch.Size] = []
    model.model.layer1.register_forward_hook(lambda module, given, out: shapes.append(out.shape))
    with torch.no_grad():
        assert model(noise(1, 32)).pooled.shape == (1, 512)
    assert shapes == [(1, 64, 32, 32)]


def small_network(*_: object, **__: object) -> ResNet:
    """A residual network as wide at its ends as ResNet-18, and next to nothing in between."""
    return ResNet(BasicBlock, (1, 1, 1, 1), channels=(4, 4, 4, 512), num_classes=0)


def test_a_reproduction_goes_on_where_it_stopped(
    run_tool: RunTool,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timm, "create_model", small_network)
    given = ("--data", pictures, "--method", "simclr", "--batch", 8, "--pictures", 16, "--neighbours", 3)
    given += ("--precision", "fp32", "--device", "cpu", "--every", "1 epochs", "--output", tmp_path / "runs")
    assert run_tool("reproduce_cifar10", *given, "--epochs", 2, "--minutes", 1e-6) == 143
    assert "run the same command to go on" in capsys.readouterr().out
    assert run_tool("reproduce_cifar10", *given, "--epochs", 2, "--json", tmp_path / "result.json") == 0
    said = capsys.readouterr().out
    assert "batch 8, 2 epochs, seed 0: kNN" in said
    result = json.loads((tmp_path / "result.json").read_text())
    assert 0 <= result["ours"] <= 1
    assert result["peer"] == 0.848


def test_learning_runs_end_in_a_table(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "in_a_process", lambda *given: learning.run_one(*given[:-1]))  # without the program
    monkeypatch.setitem(learning.ROWS["simclr"], "batch", 8)
    given = ["--rows", "simclr", "--train", "40", "--test", "20", "--steps", "2", "--processes", "1"]
    files = ["--data", str(pictures), "--results", str(tmp_path / "done.jsonl"), "--json", str(tmp_path / "all.json")]
    for seeds in ("1", "2"):
        monkeypatch.setattr("sys.argv", ["learning", *given, *files, "--seeds", seeds])
        learning.main()
    said = capsys.readouterr().out
    assert said.count("simclr, seed 0:") == 1, "a finished run is not repeated"
    assert said.rstrip().splitlines()[-1].startswith("| simclr | ")
    assert said.rstrip().endswith("| 0, 1 |")
    assert [one["seed"] for one in json.loads((tmp_path / "all.json").read_text())] == [0, 1]


def test_the_objective_is_measured_on_test_samples(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(learning.ROWS["pretext"], "batch", 8)
    for split in ("train", "test"):
        learning_data.pack_pictures(pictures / f"cifar10-{split}.npz", tmp_path / split, 20)
    found = learning.run_one("pretext", 0, tmp_path, 1, tmp_path / "none.jsonl")
    assert found["own"]["chance_loss"] == pytest.approx(math.log(4))
    assert found["own"]["accuracy"] in [hits / 16 for hits in range(17)], "of two whole batches"
    assert found["own"]["loss"] == pytest.approx(found["own"]["pretext"])
    assert found["own_before"].keys() == found["own"].keys()
    (line,) = learning.table([{**found, "own": {"accuracy": 0.3}}]).splitlines()[2:]
    assert "| accuracy 0.300 > 0.450 FAULT |" in line
    assert "FAULT" not in learning.table([{**found, "own": {"accuracy": 0.5}}])
    (tmp_path / "done.jsonl").write_text(json.dumps({**found, "before": {"knn/acc1": 0.125}}) + "\n")
    assert learning.known_before(tmp_path / "done.jsonl", "simclr", 0) == {"knn/acc1": 0.125}, "the same encoder"
    assert learning.known_before(tmp_path / "done.jsonl", "simclr", 1) is None
    assert learning.known_before(tmp_path / "done.jsonl", "mae", 0) is None


def test_bars_compare_figures_with_numbers_and_others() -> None:
    figures, before = {"accuracy": 0.3, "majority": 0.1, "loss": 2.0}, {"loss": 2.1}
    assert learning.bar_holds("accuracy > 0.25", figures, before) == (True, "accuracy 0.300 > 0.250")
    assert learning.bar_holds("accuracy > 3.5 * majority", figures, before)[0] is False
    assert learning.bar_holds("loss < before/loss", figures, before) == (True, "loss 2.000 < 2.100")
    assert learning.bar_holds("loss < 0.9 * before/loss", figures, before)[0] is False


def test_every_bar_is_about_figures_of_the_objective_and_no_control_has_those_of_its_row() -> None:
    for name, given in learning.ROWS.items():
        assert all(len(bar.split()) in (3, 5) and bar.split()[1] in "<>" for bar in given["bars"])
        if name.endswith(", control"):
            of = next(row for row in learning.ROWS if row.startswith(name.removesuffix(", control")))
            assert given["objective"] == learning.ROWS[of]["objective"]
            assert given["bars"]
            assert not {*given["bars"]} & {*learning.ROWS[of]["bars"]}


def test_sentences_are_prose_and_each_stands_once() -> None:
    text = """The first sentence stands over
    two lines. So does the second one of them. Too short.

    >>> this is code that is not taken at all.

    A ::= rule that is not taken either.

        An indented paragraph is left out as well.

    No end of a sentence in this paragraph

    The first sentence stands over two lines."""
    assert learning_data.sentences([textwrap.dedent(" " * 4 + text)]) == [
        "The first sentence stands over two lines.",
        "So does the second one of them.",
    ]


def test_recordings_are_split_as_their_authors_split_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "speech.tar", "w") as tar:
        for name in ("7_george_4.wav", "7_george_5.wav", "3_theo_0.wav", "3_theo_49.wav", "README.md"):
            tar.addfile(tarfile.TarInfo(f"recordings/{name}"), io.BytesIO())
    for split, wanted in (("train", ["3_theo_49", "7_george_5"]), ("test", ["3_theo_0", "7_george_4"])):
        learning_data.pack_speech(tmp_path / "speech.tar", tmp_path / split, split)
        with tarfile.open(tmp_path / split / "000000.tar") as tar:
            assert tar.getnames() == [f"{key}.{end}" for key in wanted for end in ("cls", "wav")]


def test_documentation_is_read_from_files_that_every_installation_has(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for name in ("b.py", "a.py", "test/c.py"):
        (tmp_path / name).write_text(f'"""Of {name}."""\n\ndef f():\n    """Of a function."""\n')
    assert [*learning_data.docstrings(tmp_path)] == ["Of a.py.", "Of a function.", "Of b.py.", "Of a function."]


def test_intervals_are_students() -> None:
    mean, half = learning.interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)


def test_every_row_is_a_recipe(tmp_path: Path) -> None:
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.validate import validate_text

    for name in learning.ROWS:
        document: dict[str, Any] = learning.recipe_of(name, 0, tmp_path, None)
        assert validate_text(Recipe, json.dumps(document), name).objective.kind == name.split(",")[0]  # type: ignore[attr-defined]


def test_sums_differ_from_clip_in_their_second_objective_alone(tmp_path: Path) -> None:
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.validate import validate_text

    documents = {name: compare_sums.recipe_of(name, 0, tmp_path, None) for name in compare_sums.PARTS}
    for name, document in documents.items():
        validate_text(Recipe, json.dumps(document), name)
        same = ("encoders", "optimizer", "duration", "batch_size", "evaluators", "data")
        assert all(document[key] == documents["clip"][key] for key in same)
        assert document["objective"]["objectives"]["clip"] == {"objective": compare_sums.CLIP}


def test_gains_of_sums_are_paired_by_seed() -> None:
    def one(name: str, seed: int, probe: float, zero_shot: float) -> dict[str, Any]:
        after = {"probe/acc1": probe, "zero_shot/acc1": zero_shot}
        return {"name": name, "seed": seed, "after": after, "seconds": 1.0, "alarms": []}

    results = [one("clip", 0, 0.5, 0.3), one("clip", 1, 0.6, 0.4)]
    results += [one("clip + dino", 0, 0.6, 0.3), one("clip + dino", 1, 0.7, 0.3)]
    lines = compare_sums.table(results).splitlines()
    assert lines[2] == "| clip | 0.550 |  | 0.350 |  | 1 | 0, 1 |"
    assert lines[3].startswith("| clip + dino | 0.650 | +0.100 ± 0.000 | 0.300 | -0.050 ± ")
    assert len(lines) == 4


def test_captions_name_the_class() -> None:
    assert compare_sums.caption(0, 6) == "a photo of a frog"
    assert {compare_sums.caption(i, 3) for i in range(100)} == {form.format("cat") for form in compare_sums.FORMS}
