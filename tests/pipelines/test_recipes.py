"""`mmssl recipes`: listing, showing, comparing, and what keys mean; the reference of all keys is complete and not stale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmssl.core.config import Config
from mmssl.recipe.describe import describe_path, key_meaning, registered
from mmssl.recipe.recipe import Recipe
from mmssl.recipe.reference import COMMAND, config_tables, reference
from mmssl.recipe.shipped import recipe_summary, shipped_recipes
from pipelines import cli
from pipelines.command import guarded

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def mmssl(*arguments: str) -> int:
    return guarded(cli.full(), ["recipes", *arguments])


def test_recipes_are_listed_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmssl() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    (line,) = (line for line in lines if line.startswith("audio_text/clap_small "))
    assert line.endswith("  A small audio-text model after CLAP (arXiv:2206.04769, arXiv:2211.06687): a spectrogram "
                         "transformer and a text transformer, for short sounds such as spoken words")  # fmt: skip


def test_the_document_of_recipes_says_the_same() -> None:
    rows = dict(re.findall(r"^\| `(\w+/\w+)` \| (.*?) \|", (CONFIGS / "README.md").read_text(), re.MULTILINE))
    said = {name: re.sub(r"(, )?arXiv:[\d.]+", "", recipe_summary(path)) for name, path in shipped_recipes().items()}
    assert rows == {name: text.replace(" ()", "") for name, text in said.items()}, "papers stand in their own column"


def test_show_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmssl("show", "image_text/vit_b_32") == 0
    assert capsys.readouterr().out == (CONFIGS / "image_text/vit_b_32.yaml").read_text()
    assert mmssl("show", "image_text/vit_b_23") == 2
    assert "did you mean 'image_text/vit_b_32'" in capsys.readouterr().err


def test_diff_names_the_keys_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = shipped_recipes()["image_text/small_32"]
    text = re.sub(r"lr: \S+", "lr: 0.125", recipe.read_text())
    assert mmssl("diff", "image_text/small_32", str(recipe)) == 0
    assert capsys.readouterr().out == "no differences\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(f"{text}\nclip_norm: 2.0\n")
    assert mmssl("diff", "image_text/small_32", str(tmp_path / "run")) == 0
    assert re.fullmatch(r"clip_norm: (null|[\d.]+) -> 2.0\noptimizer.lr: [\d.e-]+ -> 0.125\n", capsys.readouterr().out)
    assert mmssl("diff", "image_text/small_32", "quickstart/image_text_audio") == 0
    said = capsys.readouterr().out.splitlines()
    assert 'encoders.audio.kind: absent -> "audio_transformer"' in said
    assert mmssl("diff", "image_text/small_32", str(tmp_path)) == 2


def test_equal_recipes_have_no_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmssl("diff", "image_text/vit_b_32", "image_text/vit_b_32") == 0
    assert capsys.readouterr().out == "no differences\n"


def test_names_that_are_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of recipes lists them; other folders and files are called what they are."""
    assert mmssl("show", "tri_modal") == 2
    assert "its recipes are tri_modal/bind_vit_b_32, tri_modal/spoken_digits" in " ".join(
        capsys.readouterr().err.split()
    )
    assert mmssl("show", str(tmp_path)) == 2
    assert "is a folder and no shipped recipe; " in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text("")
    assert mmssl("show", str(tmp_path)) == 2
    assert f"a run is resumed by its '{tmp_path}/recipe.yaml'" in capsys.readouterr().err.replace("\n", "")
    assert mmssl("show", "image_text/vit_b_23") == 2
    assert "is no file and no shipped recipe, did you mean 'image_text/vit_b_32'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "optimizer.lr",
            [
                "optimizer.lr (kind adamw, sgd, lars)\n  type     number\n  default  required\n"
                "  allowed  above 0\n  peak rate."
            ],
        ),
        ("schedule", ["allowed  kind 'constant', 'linear', 'cosine' or 'exponential'", "learning rate over the run"]),
        ("modalities.image.views.crop.scale", ["two numbers [low, high]", "[0.9, 1.0]", "kind simclr, rand_augment"]),
        ("modalities.image.views.simclr.scale", ["modalities.image.views.simclr.scale\n", "[0.08, 1.0]"]),
        ("encoders.vit.width", ["encoders.vit.width\n", "default  768"]),
        ("encoders.vit", ["keys     ", "patch_size"]),
        ("encoders.*.patch_size", ["(kind vit", "audio_transformer", "two integers [filters, frames]"]),
        ("encoders.*.patch*", ["encoders.*.patch_size", "encoders.*.patch_dropout"]),
        ("objective.pairs", ["(kind clip)", "list of mappings"]),
        ("objective.pairs.0.weight", ["factor of the pair's loss"]),
        ("objective.objectives.mine.objective.mask_ratio", ["above 0, below 1", "default  0.75"]),
        ("data.synchronized.flip.probability", ["probability of the operation for a sample", "default  0.5"]),
        ("save.best.mode", ["'max' or 'min'"]),
        ("evaluators.*.every", ["duration or null", "null: at the end only"]),
    ],
)
def test_keys_are_described(path: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mmssl("key", path) == 0
    said = capsys.readouterr().out
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("optimiser.lr", ["no key 'optimiser' below the recipe", "did you mean 'optimizer'?"]),
        ("encoders.*.patch_siz", ["no key 'patch_siz' below encoders.*", "did you mean 'patch_size'?"]),
        ("optimizer.lr.x", ["no key 'x' below optimizer.lr", "allowed here: nothing"]),
        ("training", ["no key 'training'"]),
        ("encoders.vit.kind", ["no key 'kind'"]),
    ],
)
def test_keys_that_do_not_exist_are_refused(path: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert mmssl("key", path) == 2
    said = capsys.readouterr().err
    assert [word for word in words if word not in said] == []


def test_markdown_is_of_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert mmssl("key", "--markdown") == 0
    assert capsys.readouterr().out == reference(Recipe)
    assert mmssl("key", "seed", "--markdown") == 2


def test_the_reference_is_not_stale() -> None:
    assert (CONFIGS / "REFERENCE.md").read_text() == reference(Recipe), f"configs/REFERENCE.md is stale: run {COMMAND}"


@pytest.mark.parametrize("config", registered(Recipe), ids=lambda config: config.__name__)
def test_every_key_has_a_sentence(config: type[Config]) -> None:
    said = {name: key_meaning(config, name) for name in config.model_fields if name != "kind"}
    assert [name for name, text in said.items() if not text or text.startswith("see ")] == []


def test_every_part_is_found_at_its_path() -> None:
    """The headings of the reference are paths that `mmssl recipes key` takes."""
    for part in config_tables(Recipe)[1:]:
        names = [one.path for one in part.rows()]
        below = {one.path.rpartition(".")[2] for one in describe_path(Recipe, f"{part.path}.*")} if names else set()
        assert below.issuperset(names), part.title
