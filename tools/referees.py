#!/usr/bin/env python3
"""Scores of `mmssl evaluate` beside CLIP_benchmark's: `python3 tools/peer_env.py --env referees python tools/referees.py`.

A model is trained for some steps, exported by `mmssl export --to open_clip`, and measured by both on test sets in CLIP_benchmark's
WebDataset layout: one class a picture, several, and retrieval with one to three captions a picture. No two captions and no two
pictures are equal, so that no score depends on how ties are counted, and there are few, so that hardly any two scores lie within
the rounding of the two sides. Pictures are resized by both: by Pillow, as the recipe's `rules: open_clip` says. With `--run` and
`--data`: a run, and a folder of sets, of your own. A score that differs by more than 1e-6 ends the tool with exit code 1.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("red", "green", "blue", "yellow", "magenta", "cyan")
THINGS = ("ball", "cube", "cone", "ring", "star", "moon", "hand")
TEMPLATES = ("a {c} picture", "something {c}", "a photo of a {c} thing")
KS = (1, 5, 10)
NAMES = {
    "zero_shot": {"acc1": "acc1", "acc5": "acc5", "mean_per_class_recall": "mean_per_class_recall"},
    "multi_label": {"mAP": "mean_average_precision"},
    "retrieval": {f"text_to_image_R@{k}": f"image_retrieval_recall@{k}" for k in KS}
    | {f"image_to_text_R@{k}": f"text_retrieval_recall@{k}" for k in KS},
}
"""Kind of evaluator -> our score -> CLIP_benchmark's."""
TOLERANCE = 1e-6
RESIZED = (
    "Scores differ. With `modalities.image.rules: mmssl` torch resizes pictures, which is one level off Pillow's in some pixels: "
    "near ties then fall otherwise. Compare a run with `rules: open_clip`, or pictures of the model's size."
)
RECIPE: dict[str, Any] = {
    "name": "referees",
    "duration": "30 steps",
    "batch_size": 64,
    "device": "cpu",
    "modalities": {
        "image": {"kind": "image", "size": 32, "rules": "open_clip", "views": {"crop": {"kind": "resized_crop"}}},
        "text": {"kind": "text", "tokenizer": {"kind": "clip", "context_length": 16}},
    },
    "encoders": {
        "image": {"kind": "vit", "size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 2},
        "text": {"kind": "text_transformer", "context_length": 16, "width": 64, "depth": 2, "heads": 2},
    },
    "objective": {
        "kind": "clip",
        "pairs": [["image", "text"]],
        "views": {"image": "crop", "text": "tokens"},
        "embedding": 32,
        "temperature": 0.07,
    },
    "optimizer": {"kind": "adamw", "lr": 1e-3},
    "schedule": {"kind": "cosine", "warmup": "5 steps"},
    "save": {"every": "30 steps"},
    "log": {"trackers": []},
}


@dataclass(frozen=True)
class Agreement:
    """One score of both."""

    task: str
    score: str
    ours: float
    theirs: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by at most the tolerance."""
        return abs(self.ours - self.theirs) <= TOLERANCE


def draw(number: int) -> dict[str, bytes]:
    """The members of a sample: a noisy picture of one colour, its class, three marks, and one to three captions."""
    rng = np.random.default_rng(number)
    colour = np.array([int(bit) for bit in f"{(4, 2, 1, 6, 5, 3)[number % 6]:03b}"]) * 8
    pixels = rng.integers(0, 200, (48, 56, 3)) + colour
    file, marks = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    own = [number % 6 == kind or int(rng.integers(0, 4)) == 0 for kind in range(6)]
    np.save(marks, np.array(own, np.int64))
    name, thing = CLASSES[number % 6], THINGS[number % 7]
    lines = [f"a {name} {thing} of number {number}", f"number {number} is {name}", f"{thing} {number}"][
        : 1 + number % 3
    ]
    return {
        "png": file.getvalue(),
        "cls": str(number % 6).encode(),
        "npy": marks.getvalue(),
        "txt": "\n".join(lines).encode(),
    }


def write_set(folder: Path, numbers: range, members: tuple[str, ...], kind: str | None) -> None:
    """Samples in two shards of CLIP_benchmark's layout."""
    (folder / "test").mkdir(parents=True)
    half = (len(numbers) + 1) // 2
    for shard, part in enumerate((numbers[:half], numbers[half:])):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in part:
                fields = draw(number)
                for member in members:
                    info = tarfile.TarInfo(f"s{number:07d}.{member}")
                    info.size = len(fields[member])
                    tar.addfile(info, io.BytesIO(fields[member]))
    (folder / "test" / "nshards.txt").write_text("2")
    if kind is not None:
        (folder / "dataset_type.txt").write_text(kind)
    if kind != "retrieval":
        (folder / "classnames.txt").write_text("\n".join(CLASSES))
        (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))


def make_run(folder: Path, samples: int) -> tuple[Path, Path]:
    """A trained run, and a folder of test sets."""
    for name, members, kind in (("classes", ("png", "cls"), None), ("several", ("png", "npy"), "multilabel")):
        write_set(folder / "sets" / name, range(samples), members, kind)
    write_set(folder / "sets" / "captions", range(samples), ("png", "txt"), "retrieval")
    write_set(folder / "train", range(10_000, 10_600), ("png", "txt"), "retrieval")
    recipe = RECIPE | {"output": str(folder / "runs"), "data": {"shards": [str(folder / "train/test")], "workers": 0}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    _run("pipelines.cli", "pretrain", folder / "recipe.yaml")
    return folder / "runs" / "referees", folder / "sets"


def measure(run: Path, sets: Path, folder: Path) -> Iterator[Agreement]:
    """Every score of both on every set."""
    _run("pipelines.cli", "export", run, "--to", "open_clip", "--out", folder / "exported")
    _run("pipelines.cli", "evaluate", run, sets, "--out", folder / "ours")
    ours = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "ours").glob("*.json"))}
    (folder / "theirs").mkdir()
    for task, kinds in (
        ("zeroshot_classification", ("zero_shot", "multi_label")),
        ("zeroshot_retrieval", ("retrieval",)),
    ):
        names = [name for name, found in ours.items() if found["evaluator"]["kind"] in kinds]
        if not names:
            continue
        _run(
            *("clip_benchmark.cli", "eval", "--model", f"local-dir:{folder / 'exported'}", "--pretrained", "x"),
            *("--dataset", *(f"wds/{name}" for name in names), "--dataset_root", f"{sets.resolve()}/{{dataset}}"),
            *(
                "--task",
                task,
                "--recall_k",
                *KS,
                "--no_amp",
                "--num_workers",
                0,
                "--output",
                folder / "theirs" / "{dataset}.json",
            ),
        )
        for name in names:
            theirs = json.loads((folder / "theirs" / f"{name}.json").read_text())["metrics"]
            yield from compare(name, ours[name]["evaluator"]["kind"], ours[name]["scores"], theirs)


def compare(task: str, kind: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Agreement]:
    """The scores that both have; five best of fewer than five classes are in neither."""
    for own, other in NAMES[kind].items():
        if own in ours and theirs.get(other) is not None and theirs[other] == theirs[other]:
            yield Agreement(task, own, float(ours[own]), float(theirs[other]))


def table(found: list[Agreement], versions: str) -> str:
    """All scores as Markdown."""
    rows = [
        f"| {one.task} | {one.score} | {one.ours:.6f} | {one.theirs:.6f} | {abs(one.ours - one.theirs):.0e} |"
        for one in found
    ]
    head = ["| set | score | mmssl | CLIP_benchmark | difference |", "|---|---|---|---|---|"]
    return "\n".join([f"# Scores beside CLIP_benchmark's\n\n{versions}\n", *head, *rows, ""])


def _run(module: str, *arguments: object) -> None:
    """Run a module of either side; what it prints is shown if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def main() -> int:
    """Read arguments, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, help="a run of your own, with --data")
    parser.add_argument("--data", type=Path, help="a folder of sets in CLIP_benchmark's layout, for --run")
    parser.add_argument("--samples", type=int, default=60, help="pictures of each set that is made")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--json", type=Path, help="write the scores here")
    arguments = parser.parse_args()
    if (arguments.run is None) != (arguments.data is None):
        parser.error("--run and --data: wanted both or neither")
    from importlib.metadata import version

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, sets = (arguments.run, arguments.data) if arguments.run else make_run(folder, arguments.samples)
        found = [*measure(run, sets, folder)]
    packages = ", ".join(f"{name} {version(name)}" for name in ("clip-benchmark", "open_clip_torch", "torch", "numpy"))
    text = table(found, f"`tools/referees.py` with {packages}; a score that differs by more than {TOLERANCE:g} fails.")
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    if not found:
        print("no score that both have")
    agree = all(one.agrees for one in found)
    if not agree:
        print(RESIZED)
    return 0 if found and agree else 1


if __name__ == "__main__":
    sys.exit(main())
