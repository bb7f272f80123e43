"""Throughput of our data loader against open_clip's: `python3 tools/run.py python tools/bench_loader.py --data /tmp/bench`.

Both read the same shards (JPEG 500 x 375, or of `--height`, quality 90, one caption each), crop to 224 as open_clip does for
training (scale 0.9-1, bicubic, antialiased), tokenize, and deliver batches; rounds of the two alternate. open_clip's
`get_wds_dataset` runs in the environment of tools/peer_env.py. Two figures of each: samples per second of wall time, reliable on an
idle machine only, and samples per second of CPU time over all processes of a side, reliable on a busy one too. The ratio is ours /
theirs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

TOOLS = Path(__file__).resolve().parent
SIZE, HEIGHT, QUALITY = 224, 375, 90
FORMAT = 2  # of the synthetic shards; raise it when they change
CAPTION = (
    "the old red temple behind a small garden with two people standing near yellow petals in the quiet morning light"
)


def make_shards(folder: Path, samples: int, shards: int, height: int = HEIGHT) -> list[Path]:
    """Synthetic shards, made once: crops of scikit-learn's photographs, jittered, with noise."""
    done = folder / "done.json"
    wanted = {"format": FORMAT, "samples": samples, "shards": shards, "height": height}
    paths = [folder / f"{number:06d}.tar" for number in range(shards)]
    if done.exists() and json.loads(done.read_text()) == wanted:
        return paths
    print(f"making {samples} pictures in {folder} ...", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    for number, path in enumerate(paths):
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for ordinal in range(number * samples // shards, (number + 1) * samples // shards):
                for extension, data in synthetic(ordinal, height).items():
                    member = tarfile.TarInfo(f"{ordinal:08d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "sizes.json").write_text(
        json.dumps({p.name: (i + 1) * samples // shards - i * samples // shards for i, p in enumerate(paths)})
    )
    done.write_text(json.dumps(wanted))
    return paths


def synthetic(ordinal: int, height: int) -> dict[str, bytes]:
    """Sample `ordinal`: jpg, txt and json. The noise brings a JPEG to 2.8 bits a pixel, 66 KB, as real photographs have."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(ordinal)
    photo = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[ordinal % 2]))
    width = height * 4 // 3
    rows = int(rng.uniform(0.5, 1) * photo.height)
    columns = min(photo.width, rows * 4 // 3)
    left, top = int(rng.integers(photo.width - columns + 1)), int(rng.integers(photo.height - rows + 1))
    picture = photo.resize((width, height), Image.Resampling.BICUBIC, (left, top, left + columns, top + rows))
    pixels = np.asarray(picture, np.float32) * rng.uniform(0.8, 1.2, 3) + rng.uniform(-12, 12, 3)
    # Noise with a spectrum that falls off as that of photographs does.
    for step, strength in ((1, 3.0), (4, 8.0), (16, 12.0)):
        small = rng.normal(0, strength, (-(-height // step), -(-width // step), 1))
        pixels += small.repeat(step, 0).repeat(step, 1)[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    caption = " ".join(rng.choice(CAPTION.split(), int(rng.integers(6, 15))))
    about = {"caption": caption, "width": width, "height": height, "key": f"{ordinal:08d}"}
    return {"jpg": buffer.getvalue(), "txt": caption.encode(), "json": json.dumps(about).encode()}


def our_batches(shards: list[str], batch: int, workers: int, decode: Any = "full") -> Iterator[Any]:
    """Endless batches of this project."""
    sys.path.insert(0, str(TOOLS.parent))
    from mmssl.data.modalities.image import ImageConfig
    from mmssl.data.modalities.text import TextConfig
    from mmssl.data.stream.config import DataConfig

    modalities = {"image": ImageConfig(size=SIZE, decode=decode).build("image"), "text": TextConfig().build("text")}
    needs = {"image": {"crop": 1}, "text": {"tokens": 1}}
    return DataConfig(shards=tuple(shards), workers=workers).build(modalities, needs, batch_size=batch, seed=0)


def their_batches(shards: list[str], batch: int, workers: int, decode: str) -> Iterator[Any]:
    """Endless batches of open_clip: one epoch longer than the benchmark."""
    import open_clip
    from open_clip.transform import image_transform
    from open_clip_train.data import get_wds_dataset

    options = argparse.Namespace(
        train_data="::".join(shards),
        train_num_samples=2**40,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=batch,
        workers=workers,
        world_size=1,
        seed=0,
    )
    transform = image_transform(
        SIZE, is_train=True, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    info = get_wds_dataset(options, transform, True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    return iter(info.dataloader)


def serve(side: str, shards: list[str], batch: int, workers: int, ahead: int, decode: str) -> None:
    """Run rounds of one side: reads a number of batches a line, writes a JSON line each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    start = time.perf_counter()
    batches = {"ours": our_batches, "peer": their_batches}[side](shards, batch, workers, decode)
    next(batches)
    first = time.perf_counter() - start
    clock = CpuClock()
    clock.settle()
    print(json.dumps({"first_batch": first}), file=answers)
    for line in sys.stdin:
        print(json.dumps(one_round(batches, clock, int(line), ahead)), file=answers)


def one_round(batches: Iterator[Any], clock: CpuClock, count: int, ahead: int) -> dict[str, float]:
    """Seconds of wall and CPU time a batch.

    The clock starts when prefetched batches are used up. CPU time is taken between two moments of full prefetch, so it covers
    exactly the batches that were taken.
    """
    cpu = clock.seconds()
    for _ in range(ahead):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    wall = time.perf_counter() - start
    clock.settle()
    return {"wall": wall / count, "cpu": (clock.seconds() - cpu) / (count + ahead)}


class CpuClock:
    """CPU time of this process and its current descendants."""

    def __init__(self) -> None:
        import psutil

        self._below = psutil.Process().children(recursive=True)  # once: the search itself costs milliseconds

    def seconds(self) -> float:
        """So far."""
        times = [process.cpu_times() for process in self._below]
        return time.process_time() + sum(each.user + each.system for each in times)

    def settle(self) -> None:
        """Wait until the workers' prefetch is full."""
        before = self.seconds()
        while True:
            time.sleep(0.2)
            now = self.seconds()
            if now - before < 0.02:
                return
            before = now


class Side:
    """One loader in a separate process."""

    def __init__(self, name: str, python: str, shards: list[Path], batch: int, workers: int, decode: str) -> None:
        self.name = name
        options = {"serve": name, "batch": str(batch), "workers": str(workers), "decode": decode}
        command = [python, str(Path(__file__).resolve()), *(f"--{key}={value}" for key, value in options.items())]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, *map(str, shards)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first_batch = self._answer()["first_batch"]

    def round(self, batches: int) -> dict[str, float]:
        """Run one round."""
        print(batches, file=self._pipe(self._process.stdin), flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process and its workers."""
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, float]:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"bench_loader: the process of {self.name!r} ended with {self._process.wait()}, see above")
        answer: dict[str, float] = json.loads(line)
        return answer

    @staticmethod
    def _pipe(pipe: Any) -> TextIO:
        assert pipe is not None
        return pipe


def decode_rate(shards: list[Path]) -> float:
    """Pictures per CPU second that libjpeg-turbo decodes on one core."""
    import simplejpeg

    with tarfile.open(shards[0]) as tar:
        pictures = [tar.extractfile(m).read() for m in tar.getmembers() if m.name.endswith(".jpg")][:200]  # type: ignore[union-attr]
    rates = []
    for _ in range(5):
        start = time.process_time()
        for data in pictures:
            simplejpeg.decode_jpeg(data, colorspace="RGB")
        rates.append(len(pictures) / (time.process_time() - start))
    return statistics.median(rates)


def summary(rounds: dict[str, list[dict[str, float]]], batch: int) -> dict[str, Any]:
    """Medians over rounds; ratios are medians of the ratios of neighbouring rounds."""
    out: dict[str, Any] = {}
    for clock in ("cpu", "wall"):
        rates = {name: [batch / each[clock] for each in done] for name, done in rounds.items()}
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratios = [ours / peer for ours, peer in zip(rates["ours"], rates["peer"], strict=True)]
        out[clock] = medians | {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    return out


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make shards, run the rounds, print and return the figures."""
    shards = make_shards(folder, arguments.samples, arguments.shards, arguments.height)
    peer_python = subprocess.run(
        [sys.executable, str(TOOLS / "peer_env.py")], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    pythons = {"peer": peer_python, "ours": sys.executable}
    settings = arguments.batch, arguments.workers, arguments.decode
    sides = [Side(name, python, shards, *settings) for name, python in pythons.items()]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    decode: list[float] = []
    try:
        for number in range(arguments.rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                rounds[side.name].append(side.round(arguments.batches))
            decode.append(decode_rate(shards))
    finally:
        for side in sides:
            side.close()
    figures = summary(rounds, arguments.batch)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rate = statistics.median(decode)
    result = {
        "ratio": figures["cpu"]["ratio"],
        "ours": figures["cpu"]["ours"],
        "peer": figures["cpu"]["peer"],
        "unit": "samples per CPU second",
        "wall": figures["wall"] | {"unit": "samples per second"},
        "spread": [figures["cpu"]["lowest"], figures["cpu"]["highest"]],
        "decode_one_core": rate,
        "share_of_decode_rate": figures["cpu"]["ours"] / rate,
        "first_batch": {side.name: side.first_batch for side in sides},
        "cores": cores,
        "workers": arguments.workers,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
    }
    print(
        f"{'':12}{'open_clip':>12}{'ours':>12}{'ratio':>8}   (medians of {arguments.rounds} rounds of {arguments.batches})"
    )
    for clock, unit in (("cpu", "/ CPU s"), ("wall", "/ s")):
        row = figures[clock]
        print(
            f"{unit:12}{row['peer']:12.0f}{row['ours']:12.0f}{row['ratio']:8.2f}   ({row['lowest']:.2f}-{row['highest']:.2f})"
        )
    share = result["share_of_decode_rate"]
    print(f"decoding alone: {rate:.0f} / CPU s, times {cores} cores {rate * cores:.0f} / s; ours is {share:.0%} of it")
    print("first batch: " + ", ".join(f"{side.name} {side.first_batch:.1f} s" for side in sides))
    return result


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder that keeps the synthetic shards; default: a temporary one")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--height", type=int, default=HEIGHT, help="of the pictures; the width is 4/3 of it")
    parser.add_argument("--decode", choices=("full", "scaled"), default="full", help="ours: `modalities.image.decode`")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=30, help="batches of one round")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(
            arguments.serve,
            arguments.paths,
            arguments.batch,
            arguments.workers,
            2 * arguments.workers,
            arguments.decode,
        )
        return
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(arguments, arguments.data or Path(temporary))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
