"""Compare synchronized, video-only and no flips: `python3 tools/run.py python tools/compare_flips.py --out DIR --json FILE`.

The quickstart on moving clips runs several times, with equal data, seeds and steps; only the flip differs. "synchronized": frames
are mirrored and the channels of the sound (and the sides in the caption) exchanged with them, or neither. "one_sided": only frames
are mirrored, as is common. "none": no flip. "other_negatives": synchronized, without captions of the wrong side as negatives. Each
is scored on unseen, unmirrored clips: by the choice between a sample and its mirrored copy, and by retrieval, which alone hardly
shows the loss.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from mmssl.datasets import moving_scenes
from mmssl.recipe.shipped import find_recipe
from pipelines.quickstart import CLIPS

RECIPE = "quickstart/video_audio"
CROP = {"kind": "time_crop", "seconds": 2.0}
BOTH = [CROP, {"kind": "flip", "probability": 0.5}]
PAIRS = [
    {"modalities": pair, "weight": weight}
    for pair, weight in ((["video", "audio"], 0.4), (["video", "text"], 1.0), (["audio", "text"], 0.2))
]
PLAIN = {"modalities.text.views": {}, "objective.negatives": {}, "objective.pairs": PAIRS}
ARMS: dict[str, tuple[list[dict[str, Any]], float, dict[str, Any]]] = {
    "synchronized": (BOTH, 0.0, {}),
    "other_negatives": (BOTH, 0.0, PLAIN),
    "one_sided": ([CROP], 0.5, {}),
    "none": ([CROP], 0.0, {}),
}
"""Name -> synchronized operations, the probability that the view of the video alone is mirrored, and further settings."""

SCORES = ("sides/acc", "caption_sides/acc", "video_audio/video_to_audio_R@1", "video_audio/audio_to_video_R@1")


def main() -> None:
    """Read arguments, run, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for clips and runs; finished runs are kept")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["synchronized", "one_sided"])
    parser.add_argument("--epochs", type=int, help="default: those of the recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    moving_scenes.write(arguments.out / "clips", **CLIPS)
    result = {arm: run(arm, arguments) for arm in arguments.arms}
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def run(arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one arm and score it: "<evaluator>/<metric>", and the seconds of processor time, without data workers."""
    synchronized, flip, further = ARMS[arm]
    test = [str(arguments.out / "clips/test")]
    pairs = {"sides": ("video", "audio"), "caption_sides": ("video", "text"), "video_audio": ("video", "audio")}
    evaluators = {
        name: {"kind": "sides" if "sides" in name else "retrieval", "shards": test, "pair": pair}
        for name, pair in pairs.items()
    }
    settings: dict[str, Any] = {
        "output": str(arguments.out),
        "name": arm,
        "seed": arguments.seed,
        "data.shards": [str(arguments.out / "clips/train")],
        "data.synchronized": synchronized,
        "modalities.video.views.crop.flip": flip,
        "evaluators": evaluators,
        **further,
        **({"duration": f"{arguments.epochs} epochs"} if arguments.epochs else {}),
    }
    recipe = find_recipe(RECIPE, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    start = time.process_time()
    launch = recipe.training.launch()
    try:
        scores = recipe.build(launch).train("auto")
    finally:
        launch.close()
    return {**scores, "cpu_seconds": round(time.process_time() - start, 1)}


def table(result: dict[str, dict[str, Any]]) -> str:
    """The main scores, one column an arm."""
    lines = ["".join([f"{'':34}", *(f"{arm:>14}" for arm in result)])]
    for key in [*SCORES, "cpu_seconds"]:
        lines.append("".join([f"{key:34}", *(f"{scores[key]:14.3f}" for scores in result.values())]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
