"""Does each objective learn? Short runs on real data, beside the untrained encoder: `python tools/learning.py --data FOLDER`.

Each objective trains a small encoder for about two minutes without labels, with three seeds: on CIFAR-10 photographs, on spoken
digits, on clips of moving digits, on sentences of the documentation of Python's standard library, or on series. kNN and a
linear probe then classify test samples by the features of the network that the objective says is evaluated, and by those of the
same encoder before training. The table gives the means over seeds, and a 95 % interval of the gain (Student's t over seeds). A
row is a fault unless one of its two intervals lies above zero, and none below; and unless every seed holds the bars of the row,
which are about what the objective itself says of test samples. Rows named "..., control" are those whose signal a setting
destroys: their bars are of the other side.

FOLDER holds `cifar10-train.npz` and `cifar10-test.npz`: JPEG bytes in a row (`jpeg`), where each begins (`offsets`), `labels`; and
`fsdd-recordings.tar` for the rows on sounds and envelopes, and for digits that are written and said MNIST's test set, too
(`t10k-images-idx3-ubyte.gz`, `t10k-labels-idx1-ubyte.gz`). Runs are independent processes; finished ones are kept in `--results`
and not repeated, so the tool may be stopped and started again.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import learning_rows
import learning_rows_clips
import learning_rows_pairs
import learning_rows_series
import learning_rows_speech
import learning_rows_text
from learning_data import BESIDE, MODALITIES, pack
from learning_runs import in_a_process, raise_failures, read_arguments, run_missing

if TYPE_CHECKING:
    from mmssl.recipe.recipe import Recipe
    from mmssl.training.run import Run

ROWS = {
    **learning_rows.ROWS, **learning_rows_speech.ROWS, **learning_rows_text.ROWS, **learning_rows_series.ROWS,
    **learning_rows_pairs.ROWS, **learning_rows_clips.ROWS,
}  # fmt: skip
CLASSES = ("knn/acc1", "probe/acc1")
SPACE = ("space/uniformity", "space/rankme")
T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""Student's t for a two-sided 95 % interval, by number of seeds."""


def recipe_of(name: str, seed: int, shards: Path, steps: int | None) -> dict[str, Any]:
    """The recipe of one run."""
    given = ROWS[name]
    modality, settings = MODALITIES[given["data"]]
    test = {"shards": [str(shards / "test")], "modality": modality}
    classes = {"train_shards": [str(shards / given["labelled"])], **test}
    labelled, beside = modality != "text", given["beside"]
    return {
        "name": f"{name.replace(', ', '_').replace(' ', '_')}_{seed}",
        "seed": seed,
        "duration": f"{steps or given['steps']} steps",
        "batch_size": given["batch"],
        "modalities": {
            modality: {**settings, "views": given["views"]},
            **{name: {**BESIDE[given["data"]][name], "views": one["views"]} for name, one in beside.items()},
            **({"label": {"kind": "label"}} if labelled else {}),
        },
        "data": {"shards": [str(shards / given["train"])], "workers": 0},
        "encoders": {modality: given["encoder"], **{name: one["encoder"] for name, one in beside.items()}},
        "objective": given["objective"],
        "optimizer": given["optimizer"],
        "schedule": {"kind": "cosine", "warmup": "5 %"},
        "evaluators": {"knn": {"kind": "knn", "ks": [20], **classes}, "probe": {"kind": "linear_probe", **classes}}
        if labelled
        else {"space": {"kind": "representation", **test}},
        "log": {"every": "50 steps", "trackers": []},
        "save": {"minutes": None},
        "device": "cpu",
    }


def own_figures(recipe: Recipe, run: Run, shards: Path, training: bool, batches: int = 16) -> dict[str, float]:
    """What the objective of a run says of test samples: its loss, terms and metrics, as means over batches.

    Of two passes of one view (SimCSE) also alignment and uniformity of features; see `mmssl.evaluation.geometry`.

    Args:
        recipe, run: of the run.
        shards: folder of the test samples.
        training: whether the learner is in training mode, as for objectives that need dropout.
        batches: most batches that are read.
    """
    import torch

    from mmssl.evaluation.geometry import alignment, uniformity

    learner, total = run.state.learner.train(training), run.state.total_steps
    data = recipe.data.model_copy(update={"shards": (str(shards),)})
    stream = data.pass_over(
        data.open("test"),
        recipe.build_modalities(),
        learner.objective.needs(),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        for batch in itertools.islice(stream, batches):
            if len(batch) == recipe.batch_size:
                output, latents = learner(batch, total - 1, total)
                found.append({"loss": output.total, **output.terms, **output.metrics})
                if {"0", "1"} <= latents.keys() and latents["0"].ndim == 2:
                    both = torch.stack([latents["0"], latents["1"]], 1)
                    even = uniformity(latents["0"])
                    found[-1] |= {"alignment": alignment(both).value, "uniformity": even.value if even else 0.0}
    stream.close()
    learner.train()
    return {key: statistics.mean(float(one[key]) for one in found) for key in found[0]}


def measure(
    document: dict[str, Any],
    kept: Sequence[str],
    own: Callable[[Recipe, Run], dict[str, float]] | None = None,
    before: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Evaluate the untrained model of a recipe, train it, evaluate it again; with the alarms that the run raised.

    Args:
        document: the recipe; its output is replaced by a folder that is removed.
        kept: scores to return, "<evaluator>/<metric>".
        own: more figures, of before ("own_before") and after the run ("own").
        before: scores of the untrained model, where they are known.
    """
    import torch

    from mmssl.recipe.load import start_of
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.validate import validate_text

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = validate_text(Recipe, json.dumps({**document, "output": folder}), document["name"])
        if before is None:
            untrained = start_of(recipe).embedding
            before = {
                f"{which}/{metric}": score  # type: ignore[misc]
                for which, (evaluator, _) in recipe.build_evaluators(recipe.build_modalities()).items()
                for metric, score in evaluator.evaluate(untrained)
            }
        launch = recipe.training.launch()
        run = recipe.build(launch)
        more = {"own_before": own(recipe, run)} if own is not None else {}
        started = time.monotonic()
        after = run.train()
        seconds = time.monotonic() - started
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        more |= {"own": own(recipe, run)} if own is not None else {}
        launch.close()
    return {
        "before": {key: before[key] for key in kept},
        "after": {key: after[key] for key in kept},
        "seconds": seconds,
        "alarms": sorted({key for line in lines for key in line if key.startswith("alarm/")}),
        **more,
    }


def known_before(results: Path, name: str, seed: int) -> dict[str, float] | None:
    """Scores of a row's untrained encoder from a finished run of the same data, encoder and seed; None: there is none."""
    for line in results.read_text().splitlines() if results.exists() else ():
        one = json.loads(line)
        if one["seed"] == seed and all(ROWS[one["name"]][key] == ROWS[name][key] for key in ("data", "encoder")):
            known: dict[str, float] = one["before"]
            return known
    return None


def run_one(name: str, seed: int, shards: Path, steps: int | None, results: Path) -> dict[str, Any]:
    """The run of one row with one seed."""
    given, document = ROWS[name], recipe_of(name, seed, shards, steps)

    def own(recipe: Recipe, run: Run) -> dict[str, float]:
        training = given.get("measured") == "training"
        found = own_figures(recipe, run, shards / "test", training)
        if given["mismatched"]:
            wrong = own_figures(recipe, run, shards / given["mismatched"], training)
            found |= {f"mismatched/{key}": figure for key, figure in wrong.items()}
        return found

    kept = CLASSES if "knn" in document["evaluators"] else SPACE
    before = known_before(results, name, seed)
    return {"name": name, "seed": seed, **measure(document, kept, own if given["bars"] else None, before)}


def bar_holds(bar: str, figures: Mapping[str, float], before: Mapping[str, float]) -> tuple[bool, str]:
    """Whether a bar such as "accuracy > 1.5 * majority" or "loss < before/loss" holds, and the bar with numbers."""
    known = {**figures, **{f"before/{name}": figure for name, figure in before.items()}}
    name, sign, *limit = bar.split()
    wanted = math.prod(known[word] if word in known else float(word) for word in limit if word != "*")
    holds = known[name] > wanted if sign == ">" else known[name] < wanted
    return holds, f"{name} {known[name]:.3f} {sign} {wanted:.3f}"


def interval(gains: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval over seeds."""
    mean = statistics.mean(gains)
    if len(gains) < 2:
        return mean, math.nan
    return mean, T95[len(gains)] * statistics.stdev(gains) / math.sqrt(len(gains))


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, one row an objective; scores in the order of `CLASSES`, of texts in that of `SPACE`."""
    lines = [
        "| objective | kNN, untrained | kNN | gain | probe, untrained | probe | gain | bars | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one["name"] for one in results):
        runs = sorted((one for one in results if one["name"] == name), key=lambda one: one["seed"])
        cells = [name]
        for key in [key for key in CLASSES + SPACE if key in runs[0]["before"]]:
            before, after = ([one[when][key] for one in runs] for when in ("before", "after"))
            gain, half = interval([a - b for a, b in zip(after, before, strict=True)])
            cells += [f"{statistics.mean(before):.3f}", f"{statistics.mean(after):.3f}", f"{gain:+.3f} ± {half:.3f}"]
        bars = ROWS[name]["bars"] if "own" in runs[0] else ()
        held = [
            [bar_holds(bar, one["own"] | one["after"], one["own_before"] | one["before"]) for bar in bars]
            for one in runs
        ]
        cells.append(
            "; ".join(said for one in held for holds, said in one) + " FAULT" * any(not h for o in held for h, _ in o)
        )
        cells += [f"{statistics.mean(one['seconds'] for one in runs):.0f}", ", ".join(str(one["seed"]) for one in runs)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read arguments, run what is missing, print the table, and write the files."""
    arguments = read_arguments(__doc__.splitlines()[0] if __doc__ else None, [*ROWS], "learning.jsonl")
    if arguments.one:
        name, seed = arguments.one
        print(json.dumps(run_one(name, int(seed), arguments.shards, arguments.steps, arguments.results)))
        return
    wanted = [(name, seed) for name in arguments.rows for seed in range(arguments.seeds)]
    with tempfile.TemporaryDirectory() as folder:
        for data in {ROWS[name]["data"] for name in arguments.rows}:
            pack(data, arguments.data, Path(folder) / data, arguments.train, arguments.test)
        results, failures = run_missing(
            wanted,
            arguments.results,
            arguments.processes,
            lambda name, seed: in_a_process(
                name, seed, Path(folder) / ROWS[name]["data"], arguments.steps, arguments.results, __file__
            ),
        )
    print(table(sorted(results, key=lambda one: arguments.rows.index(one["name"]))))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    raise_failures(failures)


if __name__ == "__main__":
    main()
