"""What does a step of each objective cost beside SimCLR? `python tools/objective_cost.py --data FOLDER`.

Every row of `learning.py` gets the same small transformer and the same batch of pictures; measured is the processor time of a whole
step (views are made before), as the median of some steps. FOLDER is that of `learning.py`. Clusterings and fitted codes, which are
made now and then, are not in it.
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
from learning_rows import ROWS, VIT

BATCH = 64


def cost(name: str, shards: Path, steps: int) -> float:
    """Median processor seconds of a step of one row."""
    from mmssl.recipe.recipe import Recipe
    from mmssl.recipe.validate import validate_text
    from mmssl.training.runtime.signals import StopSignals

    document: dict[str, Any] = learning.recipe_of(name, 0, shards, steps + 1)
    document |= {"encoders": {"image": VIT}, "batch_size": BATCH, "evaluators": {}}
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
    parser.add_argument("--rows", nargs="*", choices=sorted(ROWS), default=[*ROWS], help="objectives; default: all")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder)
        learning.pack_pictures(arguments.data / "cifar10-train.npz", shards / "train", 256)
        base = cost("simclr", shards, arguments.steps)
        rows = []
        print("| objective | ms a step | beside SimCLR |\n|---|---|---|")
        for name in arguments.rows:
            found = base if name == "simclr" else cost(name, shards, arguments.steps)
            rows.append({"name": name, "ours": found, "peer": base, "ratio": base / found})
            print(f"| {name} | {1000 * found:.0f} | {found / base:.2f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps(rows[-1] | {"unit": "processor seconds a step", "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
