"""What a second objective adds to CLIP, in small: `python tools/compare_sums.py --data FOLDER`.

CLIP alone, and CLIP with SimCLR (SLIP, arXiv:2112.12750), with DINO, and with latent prediction: the same towers, photographs of
CIFAR-10, captions ("a photo of a frog", in seven forms), steps, batches and learning rate, three seeds. A linear probe and
zero-shot classification of test pictures; gains over CLIP of the same seed, with 95 % intervals over seeds. At this size it says
how the sums behave here, not how they behave on millions of captions. FOLDER and `--results`: see `learning.py`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import learning
import learning_rows
from learning_data import pack_pictures
from learning_runs import in_a_process, raise_failures, read_arguments, run_missing

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FORMS = (
    "a photo of a {}", "a picture of a {}", "a {}", "a small photo of a {}", "one {} in a picture", "the {}",
    "a blurry photo of a {}",
)  # fmt: skip
CLIP = {
    "kind": "clip", "pairs": [["image", "text"]], "views": {"image": "augmented", "text": "tokens"}, "embedding": 64,
    "temperature": 0.07, "duplicates": "ignore",
}  # fmt: skip
PARTS: dict[str, tuple[float, dict[str, Any]]] = {
    "clip": (0, {}),
    "clip + simclr": (1.0, learning.ROWS["simclr"]["objective"]),
    "clip + dino": (1.0, learning.ROWS["dino"]["objective"]),
    "clip + latent_prediction": (
        1.0,
        {**learning.ROWS["latent_prediction"]["objective"], "view": "augmented"},
    ),
}
"""Name -> weight and settings of the second objective."""
SCORES = ("probe/acc1", "zero_shot/acc1")


def caption(number: int, label: int) -> str:
    """The caption of a picture: one of the forms, by its number."""
    return FORMS[number % len(FORMS)].format(CLASSES[label])


def recipe_of(name: str, seed: int, shards: Path, steps: int | None) -> dict[str, Any]:
    """The recipe of one run."""
    weight, second = PARTS[name]
    parts = {"clip": {"objective": CLIP}} | ({"second": {"weight": weight, "objective": second}} if weight else {})
    views = {"augmented": learning_rows.COLOURS}
    if second.get("mask"):
        views["mask"] = learning.ROWS["latent_prediction"]["views"]["mask"]
    document = learning.recipe_of("simclr", seed, shards, steps)
    test = {"shards": [str(shards / "test")], "modality": "image"}
    return {
        **document,
        "name": name.replace(" + ", "_") + f"_{seed}",
        "duration": f"{steps or 300} steps",
        "modalities": {
            "image": {"kind": "image", "size": 32, "views": views},
            "text": {"kind": "text", "tokenizer": {"kind": "clip", "context_length": 16}},
            "label": {"kind": "label"},
        },
        "encoders": {
            "image": learning_rows.VIT,
            "text": {
                "kind": "text_transformer", "vocab_size": 49408, "context_length": 16, "width": 64, "depth": 2, "heads": 2,
            },
        },
        "objective": {"kind": "weighted", "objectives": parts},
        "optimizer": {**learning_rows.ADAMW, "lr": 1e-3},
        "evaluators": {
            "probe": {"kind": "linear_probe", "train_shards": [str(shards / "train")], **test},
            "zero_shot": {"kind": "zero_shot", "classnames": str(shards / "classes.txt"), **test},
        },
    }  # fmt: skip


def run_one(name: str, seed: int, shards: Path, steps: int | None) -> dict[str, Any]:
    """The run of one row with one seed."""
    return {"name": name, "seed": seed, **learning.measure(recipe_of(name, seed, shards, steps), SCORES)}


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, one row a sum; gains over CLIP of the same seeds."""
    lines = ["| objective | probe | gain | zero-shot | gain | seconds | seeds |", "|---|---|---|---|---|---|---|"]
    alone = {one["seed"]: one for one in results if one["name"] == "clip"}
    for name in PARTS:
        runs = sorted((one for one in results if one["name"] == name), key=lambda one: one["seed"])
        if not runs:
            continue
        cells = [name]
        for key in SCORES:
            cells.append(f"{statistics.mean(one['after'][key] for one in runs):.3f}")
            paired = [one["after"][key] - alone[one["seed"]]["after"][key] for one in runs if one["seed"] in alone]
            gain, half = learning.interval(paired) if paired else (0.0, 0.0)
            cells.append("" if name == "clip" else f"{gain:+.3f} ± {half:.3f}")
        cells += [f"{statistics.mean(one['seconds'] for one in runs):.0f}", ", ".join(str(one["seed"]) for one in runs)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read arguments, run what is missing, print the table, and write the files."""
    arguments = read_arguments(__doc__.splitlines()[0] if __doc__ else None, [*PARTS], "sums.jsonl")
    if arguments.one:
        print(json.dumps(run_one(arguments.one[0], int(arguments.one[1]), arguments.shards, arguments.steps)))
        return
    wanted = [(name, seed) for name in arguments.rows for seed in range(arguments.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder)
        for split, count in (("train", arguments.train), ("test", arguments.test)):
            pack_pictures(arguments.data / f"cifar10-{split}.npz", shards / split, count, caption)
        (shards / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        results, failures = run_missing(
            wanted,
            arguments.results,
            arguments.processes,
            lambda name, seed: in_a_process(name, seed, shards, arguments.steps, arguments.results, __file__),
        )
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    raise_failures(failures)


if __name__ == "__main__":
    main()
