"""What does a step of each objective cost beside SimCLR? `python tools/objective_cost.py --data FOLDER`.

Every row of `learning.py` on pictures gets the same small transformer and 64 of them; those on sounds have transformers of the same
width and depth, and stand beside SimCLR on sounds. Measured is the processor time of a whole step (views are made before), as the
median of some steps. FOLDER is that of `learning.py`. Labels, clusterings and fitted codes, made now and then, are not in it.
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
from learning_data import SPEECH, pack_pictures, pack_speech
from learning_rows import VIT

BATCH = 64
BASES = {"pictures": "simclr", "speech": "simclr, sounds"}
"""Data -> the row that others are set beside."""
ROWS = [name for name, row in learning.ROWS.items() if row["data"] in BASES and not name.endswith(", control")]


def cost(name: str, shards: Path, steps: int) -> float:
    """Median processor seconds of a step of one row."""
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.validate import validate_text
    from mmssl.training.runtime.signals import StopSignals

    data = learning.ROWS[name]["data"]
    document: dict[str, Any] = learning.recipe_of(name, 0, shards / data, steps + 1)
    document |= {"batch_size": BATCH, "evaluators": {}}
    if data == "pictures":
        document["encoders"] = {"image": VIT}
    document["schedule"] = {"kind": "constant"}
    with tempfile.TemporaryDirectory() as folder:
        recipe = validate_text(Recipe, json.dumps({**document, "output": folder}), name)
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
        needed = {learning.ROWS[name]["data"] for name in arguments.rows}
        if "pictures" in needed:
            pack_pictures(arguments.data / "cifar10-train.npz", shards / "pictures" / "train", 256)
        if "speech" in needed:
            pack_speech(arguments.data / SPEECH, shards / "speech" / "train", "train")
        bases = {data: cost(BASES[data], shards, arguments.steps) for data in needed}
        rows = []
        print("| objective | ms a step | beside SimCLR |\n|---|---|---|")
        for name in arguments.rows:
            base = bases[learning.ROWS[name]["data"]]
            found = base if name in BASES.values() else cost(name, shards, arguments.steps)
            rows.append({"name": name, "ours": found, "peer": base, "ratio": base / found})
            print(f"| {name} | {1000 * found:.0f} | {found / base:.2f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(rows[-1] | {"unit": "processor seconds a step", "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
