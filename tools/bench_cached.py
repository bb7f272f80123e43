"""Peak memory of a step with cached gradients against a plain one: `python3 tools/run.py python tools/bench_cached.py`.

CLIP's loss on random pictures and captions through a small vision and a small text transformer, on the CPU. Every measurement
runs in a separate process: its figure is the growth of the process' peak resident memory (ru_maxrss) over one forward and
    backward pass, after a warm-up pass over two pairs. Losses and gradients of both are compared too: less memory must not mean
another result. The ratio is plain / cached, at the largest batch.

`--pairs 1024 2048 32768 --cached-only` shows batches that a plain step cannot hold: the memory of the encoders stays that of one
micro-batch; what grows is the loss.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZE, PATCH, WIDTH, DEPTH, HEADS, TOKENS, WORDS, EMBEDDING = 32, 4, 128, 2, 4, 16, 1000, 64


def measure(kind: str, pairs: int, micro_batch: int, threads: int) -> dict[str, Any]:
    """Measure one step of one kind in this process: MiB of growth, seconds, loss, and gradient norms."""
    import torch

    from mmssl.core.objective import Learner
    from mmssl.core.plan import Plan
    from mmssl.encoders.text_transformer import TextTransformerConfig
    from mmssl.encoders.vit import VisionTransformerConfig
    from mmssl.objectives.clip import ClipConfig
    from mmssl.training.runtime.launch import Launch
    from mmssl.training.steps.cached import CachedStepConfig
    from mmssl.training.steps.plain import PlainStepConfig

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"width": WIDTH, "depth": DEPTH, "heads": HEADS}
    encoders = {
        "image": VisionTransformerConfig(size=SIZE, patch_size=PATCH, **shape).build(),
        "text": TextTransformerConfig(vocab_size=WORDS, context_length=TOKENS, **shape).build(),
    }
    objective = ClipConfig(
        pairs=(("image", "text"),), views={"image": "crop", "text": "tokens"}, embedding=EMBEDDING, temperature=0.07
    )
    learner, launch = Learner(encoders, objective.build(encoders, Plan.unknown())), Launch(device="cpu")
    count = max(2, -(-pairs // micro_batch))
    config = PlainStepConfig() if kind == "plain" else CachedStepConfig(micro_batches=count)
    step = config.build(learner, learner, launch, seed=0, clip_norm=None)
    step.gradients(make_batch(2), 0, 1)
    learner.zero_grad(set_to_none=False)  # gradients have their memory from here on
    batch = make_batch(pairs)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    output, _ = step.gradients(batch, 0, 1)
    seconds = time.perf_counter() - started
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    gradients = {name: parameter.grad for name, parameter in learner.named_parameters() if parameter.grad is not None}
    return {
        "mebibytes": growth / (2**20 if sys.platform == "darwin" else 2**10),
        "seconds": seconds,
        "loss": output.total.item(),
        "gradients": {name: gradient.double().norm().item() for name, gradient in gradients.items()},
    }


def make_batch(pairs: int) -> Any:
    """Random pictures [pairs, 3, SIZE, SIZE] and captions [pairs, TOKENS]."""
    import torch

    from mmssl.core.batch import Batch

    random = torch.Generator().manual_seed(pairs)
    pictures = torch.randint(0, 256, (pairs, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    captions = torch.randint(1, WORDS - 1, (pairs, TOKENS), generator=random)
    captions[:, -1] = WORDS - 1  # the end of the text is the largest id
    return Batch({"image": {"crop0": pictures}, "text": {"tokens0": captions}}, torch.arange(pairs))


def in_a_process(kind: str, pairs: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `measure` in a new process, because peak memory never goes down."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", kind, "--pairs", str(pairs)]
    command += ["--micro-batch", str(arguments.micro_batch), "--threads", str(arguments.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest relative difference of the loss and of the norms of all gradients."""
    pairs = [(ours["loss"], theirs["loss"])]
    largest = max(theirs["gradients"].values())
    pairs += [(ours["gradients"][name], max(norm, 1e-4 * largest)) for name, norm in theirs["gradients"].items()]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def main() -> int:
    """Measure, print a table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[256, 1024], help="batch sizes")
    parser.add_argument("--micro-batch", type=int, default=64, help="pairs in a micro-batch")
    parser.add_argument("--cached-only", action="store_true", help="skip the plain step")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--one", choices=["plain", "cached"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.pairs[0], arguments.micro_batch, arguments.threads)))
        return 0
    rows = []
    print(f"micro-batch of {arguments.micro_batch} pairs; peak memory of a step beyond weights, gradients and batch\n")
    print(
        f"{'pairs':>7} {'plain MiB':>10} {'cached MiB':>11} {'ratio':>6} {'plain s':>8} {'cached s':>9} {'difference':>11}"
    )
    for pairs in sorted(arguments.pairs):
        ours = in_a_process("cached", pairs, arguments)
        theirs = None if arguments.cached_only else in_a_process("plain", pairs, arguments)
        row = {"pairs": pairs, "cached_mib": ours["mebibytes"], "cached_seconds": ours["seconds"]}
        if theirs is None:
            print(
                f"{pairs:>7} {'-':>10} {ours['mebibytes']:>11.0f} {'-':>6} {'-':>8} {ours['seconds']:>9.1f} {'-':>11}"
            )
        else:
            row |= {"plain_mib": theirs["mebibytes"], "plain_seconds": theirs["seconds"]}
            row |= {"difference": distance(ours, theirs)}
            print(
                f"{pairs:>7} {theirs['mebibytes']:>10.0f} {ours['mebibytes']:>11.0f} "
                f"{theirs['mebibytes'] / ours['mebibytes']:>6.1f} {theirs['seconds']:>8.1f} {ours['seconds']:>9.1f} "
                f"{row['difference']:>11.1e}"
            )
        rows.append(row)
    if arguments.json:
        ours, peer = rows[-1]["cached_mib"], rows[-1].get("plain_mib")
        figures = {"ratio": peer and peer / ours, "ours": ours, "peer": peer, "unit": "MiB", "rows": rows}
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
