"""What does a step of each objective cost beside SimCLR? `python tools/objective_cost.py --data FOLDER`.

Every row of `learning.py` on pictures gets the same small transformer and 64 of them; those on sounds have transformers of the same
width and depth, and stand beside SimCLR on sounds. Clips, sentences, series and pairs of modalities: each of their
rows stands beside SimCLR with the row's own encoder and view, pairs beside that of their sounds. Measured is the processor time of
a whole step (views are made before), as the median of some steps. FOLDER is that of `learning.py`. Labels, clusterings and fitted
codes, made now and then, are not in it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import learning
from learning_data import (
    MODALITIES,
    SPEECH,
    pack_clips,
    pack_digits,
    pack_envelopes,
    pack_pictures,
    pack_rhythms,
    pack_sentences,
    pack_speech,
)
from learning_rows import HEAD, VIT

BATCH = 64
BASES = {"pictures": "simclr", "speech": "simclr, sounds"}
"""Data -> the row that others are set beside."""
OWN_BASE = ("sentences", "rhythms", "envelopes", "digits", "clips")
"""Data whose rows are set beside SimCLR with their own encoder; pairs of modalities beside that of one of them."""
ROWS = [
    name
    for name, row in learning.ROWS.items()
    if (row["data"] in BASES or row["data"] in OWN_BASE) and not name.endswith(", control")
]


def recipe_of(name: str, shards: Path, steps: int) -> dict[str, Any]:
    """The recipe of a row, with the batch of this measurement."""
    data = learning.ROWS[name]["data"]
    document: dict[str, Any] = learning.recipe_of(name, 0, shards / data, steps + 1)
    document |= {"batch_size": BATCH, "evaluators": {}, "schedule": {"kind": "constant"}}
    if data == "pictures":
        document["encoders"] = {"image": VIT}
    return document


def base_of(name: str, shards: Path, steps: int) -> dict[str, Any]:
    """The recipe that a row is set beside."""
    data = learning.ROWS[name]["data"]
    if data in BASES:
        return recipe_of(BASES[data], shards, steps)
    document, modality = recipe_of(name, shards, steps), MODALITIES[data][0]
    objective, settings = document["objective"], document["modalities"]
    view = objective["view"] if "view" in objective else objective["views"][modality]
    used = {kind: of for kind, of in settings[modality]["views"].items() if kind == view}
    return {
        **document,
        "modalities": {modality: {**settings[modality], "views": used}},
        "encoders": {modality: document["encoders"][modality]},
        "objective": {
            "kind": "simclr", "modality": modality, "view": view, "temperature": 0.2, "embedding": 64, "head": HEAD,
        },
    }  # fmt: skip


def cost(document: dict[str, Any], steps: int) -> float:
    """Median processor seconds of a step of one recipe."""
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.validate import validate_text
    from mmssl.training.runtime.signals import StopSignals

    with tempfile.TemporaryDirectory() as folder:
        recipe = validate_text(Recipe, json.dumps({**document, "output": folder}), document["name"])
        launch = recipe.training.launch()
        run = recipe.build(launch)
        try:
            run.state.learner.train()
            run.refresh(run.state, run.save, StopSignals())
            batch = next(iter(run.state.stream))
            seconds = []
            for _ in range(steps + 1):
                started = time.process_time()
                run.step(run.state, batch)
                seconds.append(time.process_time() - started)
        finally:
            run.state.stream.close()
            launch.close()
    return statistics.median(seconds[1:])


def pack(source: Path, shards: Path, needed: set[str]) -> None:
    """Write the training data of some rows, below a folder for each data."""
    if "pictures" in needed:
        for folder in ("train", "few"):
            pack_pictures(source / "cifar10-train.npz", shards / "pictures" / folder, 256)
    if "speech" in needed:
        pack_speech(source / SPEECH, shards / "speech" / "train", "train")
    if "sentences" in needed:
        pack_sentences(shards / "sentences")
    if "rhythms" in needed:
        pack_rhythms(shards / "rhythms", 4 * BATCH, 8)
    if "envelopes" in needed:
        pack_envelopes(source / SPEECH, shards / "envelopes")
    if "clips" in needed:
        pack_clips(shards / "clips", BATCH, 1)
    if "digits" in needed:
        pack_digits(source, shards / "digits")


def main() -> None:
    """Measure every row, and print a table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with the npz files")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS, help="objectives; default: all")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder)
        pack(arguments.data, shards, {learning.ROWS[name]["data"] for name in arguments.rows})
        bases: dict[str, float] = {}
        rows = []
        print("| objective | ms a step | beside SimCLR |\n|---|---|---|")
        for name in arguments.rows:
            document, beside = (of(name, shards, arguments.steps) for of in (recipe_of, base_of))
            key = json.dumps([beside[part] for part in ("encoders", "objective")])
            if key not in bases:
                bases[key] = cost(beside, arguments.steps)
            base = bases[key]
            found = base if name in BASES.values() else cost(document, arguments.steps)
            rows.append({"name": name, "ours": found, "peer": base, "ratio": base / found})
            print(f"| {name} | {1000 * found:.0f} | {found / base:.2f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(rows[-1] | {"unit": "processor seconds a step", "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
