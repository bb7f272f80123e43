"""Throughput of a whole training run against open_clip's: `python3 tools/run.py python tools/bench_train.py --json FILE`.

`open_clip_train.main` (in the environment of tools/peer_env.py) and `mmssl pretrain` train the same model from the same weights on
the same shards, with the same batch, number of samples, precision, optimizer and schedule, one after the other: JPEGs of 500 x 375
and captions of real length, made once. Each logs a line at every step, and the times of the lines are taken: they include
everything from reading shards to logging. The first steps, with the start-up of both, are excluded.

A ratio is our samples per second over the peer's. The loss curves are compared too: the order of samples differs, so they agree
only within noise. `--seeds 3` runs each side three times, with other orders and weights, to estimate that noise; the curves agree
if the means of their second halves are less than two standard errors apart.

Captions repeat, and equal captions cannot be told apart: that is a floor of the loss, which depends on how many of them meet in a
batch. Each shard has all captions in random order, so that it is the same floor whichever samples a worker takes at a time. (With
shards of few captions each, open_clip's batches, which come from one worker and so from one shard, had a higher one.)

`--recorded` gives open_clip's model and loss the very batches of our run instead, and compares the curves step by step (see
recorded.py); nothing is timed then.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import recorded
from captions import CAPTIONS

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parent
HEIGHT, WIDTH, QUALITY, SHARDS = 375, 500, 90, 4
RATE, DECAY, WARMUP = 1e-4, 0.2, 10  # a gentle rate: short curves that jump could not be compared
STEPS = {
    "peer": re.compile(r"Train Epoch: .* Contrastive_loss: (\S+)"),
    "ours": re.compile(r"step +\d+/\d+ \| loss (\S+)"),
}


def caption_numbers(samples: int) -> list[int]:
    """Number of the caption of each sample: all equally often, in random order."""
    kinds = [ordinal % len(CAPTIONS) for ordinal in range(samples)]
    random.Random(0).shuffle(kinds)
    return kinds


def floor_loss(kinds: list[int], batch: int, draws: int = 2000) -> float:
    """Expected floor of InfoNCE on random batches: the mean over samples of ln g, with g samples of its caption in the batch."""
    rng, floors = random.Random(1), []
    for _ in range(draws):
        counts = Counter(rng.sample(kinds, batch))
        floors.append(sum(count * math.log(count) for count in counts.values()) / batch)
    return statistics.fmean(floors)


def make_shards(folder: Path, samples: int) -> None:
    """Photographs with a coloured square, whose place and colour tell which of the captions belongs to it."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photos = [Image.fromarray(load_sample_image(name)).resize((WIDTH, HEIGHT)) for name in ("china.jpg", "flower.jpg")]
    folder.mkdir(parents=True)
    kinds = caption_numbers(samples)
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for ordinal in range(number, samples, SHARDS):
                rng = np.random.default_rng(ordinal)
                kind = kinds[ordinal]
                pixels = np.asarray(photos[int(rng.integers(2))], np.float32) + rng.normal(0, 12, (HEIGHT, WIDTH, 1))
                place, colour = divmod(kind, 8)
                top, left = 20 + 180 * (place // 2), 30 + 240 * (place % 2)
                pixels[top : top + 150, left : left + 200] = [255 * (colour >> bit & 1) for bit in range(3)]
                picture = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(picture, "JPEG", quality=QUALITY)
                for extension, data in (("jpg", picture.getvalue()), ("txt", CAPTIONS[kind].encode())):
                    member = tarfile.TarInfo(f"{ordinal:08d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def make_weights(model: str, path: Path, seed: int) -> None:
    """Write the random initial weights of both sides."""
    import open_clip
    import torch

    torch.manual_seed(seed)
    torch.save(open_clip.create_model(model, pretrained=None).state_dict(), path)


def write_recipe(arguments: argparse.Namespace, folder: Path, seed: int) -> Path:
    """Write the recipe that equals the peer's options."""
    import open_clip

    from mmssl.interop.open_clip import encoder_configs

    settings = open_clip.get_model_config(arguments.model)
    image, text = encoder_configs(settings)
    recipe = {
        "name": f"ours-{seed}",
        "seed": seed,
        "duration": f"{arguments.samples} samples",
        "batch_size": arguments.batch,
        "weights": str(folder / "weights.pt"),
        "modalities": {
            "image": {
                "kind": "image",
                "size": image.size,
                "views": {"crop": {"kind": "resized_crop", "scale": [0.9, 1.0]}},
            },
            "text": {"kind": "text", "tokenizer": {"kind": "clip", "context_length": text.context_length}},
        },
        "data": {"shards": [str(folder / "shards")], "workers": arguments.workers},
        "encoders": {"image": image.model_dump(mode="json"), "text": text.model_dump(mode="json")},
        "objective": {
            "kind": "clip",
            "pairs": [["image", "text"]],
            "views": {"image": "crop", "text": "tokens"},
            "embedding": settings["embed_dim"],
            "temperature": 0.07,
        },
        "optimizer": {"kind": "adamw", "lr": RATE, "weight_decay": DECAY},
        "schedule": {"kind": "cosine", "warmup": f"{WARMUP} steps"},
        "precision": arguments.precision,
        "device": "cpu",
        "save": {"minutes": None},
        "log": {"every": "1 steps", "trackers": []},
        "output": str(folder),
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return path


def commands(arguments: argparse.Namespace, folder: Path, seed: int) -> dict[str, list[str]]:
    """The command of each side."""
    find = subprocess.run([sys.executable, str(TOOLS / "peer_env.py")], check=True, stdout=subprocess.PIPE, text=True)
    options = {
        "train-data": f"{folder}/shards/{{000000..{SHARDS - 1:06d}}}.tar",
        "train-num-samples": arguments.samples,
        "dataset-type": "webdataset",
        "model": arguments.model,
        "pretrained": folder / "weights.pt",
        "batch-size": arguments.batch,
        "precision": {"fp32": "fp32", "bf16": "amp_bf16"}[arguments.precision],
        "workers": arguments.workers,
        "epochs": 1,
        "lr": RATE,
        "wd": DECAY,
        "warmup": WARMUP,
        "log-every-n-steps": 1,
        "device": "cpu",
        "logs": "none",
        "seed": seed,
    }
    peer = [find.stdout.strip(), "-m", "open_clip_train.main"]
    for name, value in options.items():
        peer += [f"--{name}", str(value)]
    ours = [sys.executable, "-m", "pipelines.pretrain", str(write_recipe(arguments, folder, seed))]
    return {"peer": peer, "ours": ours}


def run(side: str, command: list[str], threads: int, folder: Path) -> tuple[list[float], list[float]]:
    """Run one side in `folder`, where open_clip also writes its logs: time of each step (seconds), and its loss.

    Raises:
        SystemExit: it failed; its last lines are printed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "COLUMNS": "300"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    moments, losses, lines = [], [], []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        found = STEPS[side].search(line)
        if found:
            moments.append(time.perf_counter())
            losses.append(float(found[1]))
    if process.wait() or not moments:
        raise SystemExit(f"bench_train: {side} ended with {process.returncode}:\n{''.join(lines[-30:])}")
    return moments, losses


def compare(curves: dict[str, list[list[float]]]) -> dict[str, Any]:
    """The loss curves of each side, and the difference of the means of their second halves.

    "noise" is the standard error of that difference, from the spread of runs of one side, and "agree" whether the difference is at
    most twice as large; None: one run each.
    """
    halves = {side: [statistics.fmean(run[len(run) // 2 :]) for run in runs] for side, runs in curves.items()}
    means = {side: statistics.fmean(half) for side, half in halves.items()}
    noise = None
    if all(len(half) > 1 for half in halves.values()):
        noise = sum(statistics.variance(half) / len(half) for half in halves.values()) ** 0.5
    apart = means["ours"] - means["peer"]
    agree = None if noise is None else abs(apart) <= 2 * noise
    return {"curves": curves, "halves": halves, "means": means, "apart": apart, "noise": noise, "agree": agree}


def run_recorded(arguments: argparse.Namespace, folder: Path, steps: int) -> dict[str, Any]:
    """The curves of our runs, and of open_clip on the batches of each; printed as a table of the first one."""
    import torch

    torch.set_num_threads(arguments.threads)
    settings = {"rate": RATE, "decay": DECAY, "warmup": WARMUP, "precision": arguments.precision}
    curves: dict[str, list[list[float]]] = {"ours": [], "peer": []}
    for seed in range(arguments.seeds):
        make_weights(arguments.model, folder / "weights.pt", seed)
        recipe = write_recipe(arguments, folder, seed)
        command = [sys.executable, "-m", "pipelines.pretrain", str(recipe)]
        curves["ours"].append(run("ours", command, arguments.threads, folder)[1])
        batches = recorded.recorded_batches(recipe, steps)
        weights = folder / "weights.pt"
        curves["peer"].append(recorded.peer_losses(arguments.model, weights, batches, steps, settings))
    found = recorded.compare_recorded(curves["ours"], curves["peer"])
    for step in range(0, steps, max(1, steps // 20)):
        print(f"{step:>5} {curves['peer'][0][step]:>10.4f} {curves['ours'][0][step]:>10.4f}")
    print(f"same batches: {found['mean']:.5f} apart at a step on average, {found['largest']:.5f} at most")
    return found


def main() -> None:
    """Read arguments, run both, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name of a model with our kinds of towers")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1280, help="of the whole run, and of its shards")
    parser.add_argument("--skip", type=int, default=4, help="first steps to exclude")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seeds", type=int, default=1, help="runs of each side")
    parser.add_argument("--recorded", action="store_true", help="the same batches on both sides; compares curves only")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    steps = arguments.samples // arguments.batch
    if arguments.samples % arguments.batch or steps < arguments.skip + 4:
        parser.error(f"got {arguments.samples} samples, wanted whole batches, and at least 4 after the first --skip")
    rates: dict[str, list[float]] = {"peer": [], "ours": []}
    curves: dict[str, list[list[float]]] = {"peer": [], "ours": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_shards(folder / "shards", arguments.samples)
        if arguments.recorded:
            write(arguments, {"loss": run_recorded(arguments, folder, steps)})
            return
        for seed in range(arguments.seeds):
            make_weights(arguments.model, folder / "weights.pt", seed)
            for side, command in commands(arguments, folder, seed).items():
                moments, losses = run(side, command, arguments.threads, folder)
                if len(moments) != steps:
                    raise SystemExit(f"bench_train: {side} said {len(moments)} steps, wanted {steps}")
                measured = moments[arguments.skip :]
                rates[side].append(arguments.batch * (len(measured) - 1) / (measured[-1] - measured[0]))
                curves[side].append(losses)
                print(f"{side}: {rates[side][-1]:.2f} samples/s over {len(measured) - 1} of {steps} steps", flush=True)
    speed = {side: statistics.median(each) for side, each in rates.items()}
    ratio, compared = speed["ours"] / speed["peer"], compare(curves)
    print(f"ratio {ratio:.2f}\n\n{'step':>5} {'open_clip':>10} {'ours':>10}")
    for step in range(0, steps, max(1, steps // 20)):
        means = [statistics.fmean(losses[step] for losses in curves[side]) for side in ("peer", "ours")]
        print(f"{step:>5} {means[0]:>10.4f} {means[1]:>10.4f}")
    noise = "not known: --seeds 3 tells" if compared["noise"] is None else f"{compared['noise']:.4f}"
    floor = floor_loss(caption_numbers(arguments.samples), arguments.batch)
    print(
        f"second half: open_clip {compared['means']['peer']:.4f}, ours {compared['means']['ours']:.4f}, "
        f"{compared['apart']:+.4f} apart; the noise of that is {noise}; floor of both {floor:.4f}"
    )
    result = {
        "ratio": ratio,
        **speed,
        "unit": "samples per second",
        "rates": rates,
        "loss": {**compared, "floor": floor},
    }
    write(arguments, result)


def write(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the result with its settings, if a file was named."""
    if arguments.json:
        names = ("model", "batch", "samples", "precision", "threads", "seeds", "recorded")
        setting = {name: getattr(arguments, name) for name in names}
        arguments.json.write_text(json.dumps(result | setting, indent=1) + "\n")


if __name__ == "__main__":
    main()
