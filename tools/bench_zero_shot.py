"""Time to build a zero-shot classifier against open_clip: `python3 tools/run.py python tools/bench_zero_shot.py --json FILE`.

Both embed the same prompts (class names in open_clip's 80 sentences for ImageNet) with the same weights: open_clip by its
`build_zero_shot_classifier`, with all prompts padded to 77 tokens, ours as the zero-shot evaluator does it. Both take turns, and
medians are compared. The classifiers are compared too: the faster one must compute the same.

A ratio is the peer's seconds over ours: above 1, ours is better.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from mmssl.data.modalities.text import TextConfig
from mmssl.evaluation.common import inference
from mmssl.evaluation.prompts import build_classifier
from mmssl.interop.open_clip import load_open_clip


def main() -> None:
    """Read arguments, measure, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="ViT-B-32", help="open_clip's name")
    parser.add_argument("--classes", type=int, default=8, help="of ImageNet's names; each has 80 prompts")
    parser.add_argument("--batch", type=int, default=256, help="prompts that ours embeds at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: all threads together")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    print(
        f"{arguments.model}, {result['prompts']} prompts of {result['tokens']:.1f} tokens: ours {result['ours']:.2f} s, open_clip "
        f"{result['peer']:.2f} s, {1 / result['ratio']:.3f} of its time; classifiers {result['difference']:.1e} apart"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of both, and the largest difference of their classifiers (rows of norm 1)."""
    torch.manual_seed(0)
    peer = open_clip.create_model(arguments.model, pretrained=None).eval()
    model = load_open_clip(open_clip.get_model_config(arguments.model), peer.state_dict())
    names = list(open_clip.IMAGENET_CLASSNAMES)
    names = names[:: len(names) // arguments.classes][: arguments.classes]
    sentences = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    text = TextConfig().build("text")
    tokenizer = open_clip.get_tokenizer(arguments.model)

    def ours() -> Tensor:
        with inference(model):
            return build_classifier(
                lambda texts: model.embed("text", text.tokenize(texts)),
                names,
                sentences,
                arguments.batch,
            )

    def theirs() -> Tensor:
        return open_clip.build_zero_shot_classifier(peer, tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES).T

    sides = {"ours": ours, "peer": theirs}
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    text.tokenize(["first"]), tokenizer(["first"])  # tables are loaded before the clock starts
    times: dict[str, list[float]] = {side: [] for side in sides}
    built: dict[str, Tensor] = {}
    for _ in range(arguments.repeats):
        for side, function in sides.items():
            start = clock()
            built[side] = function()
            times[side].append(clock() - start)
    own, other = (statistics.median(times[side]) for side in ("ours", "peer"))
    prompts = [sentence.replace("{}", name) for name in names for sentence in sentences]
    return {
        "ratio": other / own,
        "ours": own,
        "peer": other,
        "unit": f"{arguments.clock} seconds, {arguments.threads} threads",
        "difference": float((built["ours"] - built["peer"]).abs().max()),
        "prompts": len(prompts),
        "tokens": float((tokenizer(prompts).argmax(1) + 1).float().mean()),
    }


if __name__ == "__main__":
    main()
