"""Why pictures need no SIGReg beside captions: `python3 tools/run.py python tools/compare_predictive.py --out DIR --json FILE`.

The tri-modal quickstart without any negatives, in small: pictures of 32 pixels and spectrograms of the embedded scenes in memory,
a few hundred steps on one thread. The arms differ in the objective only. Each is scored on test scenes that it has not seen:
zero-shot accuracy, a linear probe of the digit on the embeddings and on the features before the head, the effective rank of the
embeddings, and R2, the share of the variance of one modality's embeddings that is predicted from another's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.batch import Batch
from mmssl.core.objective import Learner
from mmssl.core.plan import Plan
from mmssl.core.seeding import fold
from mmssl.datasets import digit_scenes
from mmssl.evaluation.collect import KeptShards
from mmssl.evaluation.geometry import effective_rank
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.recipe.load import start_of
from mmssl.recipe.recipe import Recipe, evaluation_modalities
from mmssl.recipe.shipped import find_recipe

RECIPE = "quickstart/image_text_audio"
SIZE = 32
VIEWS = {"image": "crop", "text": "tokens", "audio": "crop"}
MLP = {"kind": "mlp", "layers": 2, "hidden": 256, "norm": "layer"}
NONE = {"kind": "identity"}
TOLD = {"regularised": ["text", "audio"]}
HUB = {"pairs": [["image", "text"], ["audio", "text"]]}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "predictors": ({"predictor": MLP, "sigreg_weight": 0.02}, {}),
    "predictors, pictures without SIGReg": ({"predictor": MLP, "sigreg_weight": 0.02, **TOLD}, {}),
    "no predictors": ({"predictor": NONE, "sigreg_weight": 0.1}, {}),
    "no predictors, pictures without SIGReg": ({"predictor": NONE, "sigreg_weight": 0.1, **TOLD}, {}),
    "no predictors, captions alone with SIGReg": (
        {"predictor": NONE, "sigreg_weight": 0.1, "regularised": ["text"]},
        {"embedding": 32, **HUB},
    ),
}
"""Name -> settings of `prediction`, and further settings of the objective."""

Data = dict[str, Tensor]
"""Modality (and "label", -1 for none) -> [N, ...]."""


def main() -> None:
    """Read arguments, run, print, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards; they are kept")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=8000, help="training scenes")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digit_scenes.write(arguments.out, train=arguments.scenes, validation=0, test=800)
    train, test, prompts = load(arguments.out)
    result = {}
    for arm in arguments.arms:
        start = time.process_time()
        learner = trained(recipe_of(arm, arguments.seed), train, arguments.steps, arguments.seed)
        result[arm] = scores(learner, train, test, prompts) | {"cpu_seconds": round(time.process_time() - start)}
        print(arm, json.dumps(result[arm]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def recipe_of(arm: str, seed: int) -> Recipe:
    """The quickstart's recipe with small pictures and the arm's objective."""
    prediction, further = ARMS[arm]
    objective = {
        "kind": "clip", "loss": "predictive", "pairs": [["image", "text"], ["audio", "text"], ["image", "audio"]],
        "views": VIEWS, "embedding": 64, "prediction": {"directions": 64, **prediction}, **further,
    }  # fmt: skip
    settings = {
        "seed": seed,
        "modalities.image.size": SIZE,
        "encoders.image.size": SIZE,
        "objective": objective,
        "evaluators": {},
    }
    return find_recipe(RECIPE, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def load(shards: Path) -> tuple[Data, Data, Tensor]:
    """Pictures, tokens, spectrograms and labels of both splits, and the tokens [10 * T, L] of the prompts."""
    model = start_of(recipe_of(next(iter(ARMS)), 0))
    modalities = evaluation_modalities(model.modalities)
    splits = []
    for split in ("train", "test"):
        config = RetrievalConfig(shards=(str(shards / split),), pair=("image", "text"))
        kept = KeptShards(config, modalities, (*VIEWS, "label"), config.shards, None)
        encode = {name: lambda x: x for name in (*VIEWS, "label")}
        encode["audio"] = model.embedding.encoders["audio"].prepare
        data = kept.collect(encode, torch.device("cpu"))
        labels = torch.full((len(data.keys),), -1)
        labels[data["label"].owner] = data["label"].rows.long()
        splits.append({name: data[name].rows for name in VIEWS} | {"label": labels})
    sentences = [template.format(name) for name in digit_scenes.CLASS_NAMES for template in digit_scenes.TEMPLATES]
    return splits[0], splits[1], modalities["text"].tokenize(sentences)


class Spectrogram(torch.nn.Module):
    """In place of a front-end whose spectrograms are in memory."""

    def forward(self, x: Tensor, augment: bool = False) -> Tensor:
        """[B, filters, frames] -> [B, 1, filters, frames]."""
        return x[:, None]


def trained(recipe: Recipe, train: Data, steps: int, seed: int) -> Learner:
    """Train the recipe's learner by its optimizer, with a cosine after 5 % of warm-up; pictures are shifted by up to 2 pixels."""
    samples, batch_size = len(train["label"]), recipe.batch_size
    learner = recipe.build_learner(recipe.build_modalities(), Plan.of(recipe.duration, batch_size, samples))
    learner.encoders["audio"].front_end = Spectrogram()
    optimizer = recipe.training.optimizer.build(learner)
    peak = [group["lr"] for group in optimizer.param_groups]
    random = torch.Generator().manual_seed(fold(seed, "compare_predictive"))
    left, warm = torch.empty(0, dtype=torch.long), 0.05 * steps
    learner.train()
    for step in range(steps):
        share = min(1, (step + 1) / warm) * (1 + math.cos(math.pi * max(0, step - warm) / (steps - warm))) / 2
        for group, rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = rate * share
        if len(left) < batch_size:
            left = torch.randperm(samples, generator=random)
        rows, left = left[:batch_size], left[batch_size:]
        x = views(train, rows)
        across, down = torch.randint(0, 5, (2,), generator=random).tolist()
        wide = F.pad(x["image"].float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
        x["image"] = wide[..., down : down + SIZE, across : across + SIZE]
        out, _ = learner(Batch({name: {f"{VIEWS[name]}0": x[name]} for name in VIEWS}, rows), step)
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    return learner.eval()


def views(data: Data, rows: Tensor) -> Data:
    """Views [n, ...] of some samples."""
    return {
        "image": data["image"][rows],
        "text": data["text"][rows],
        "audio": data["audio"][rows][:, 0],
    }


@torch.no_grad()
def scores(learner: Learner, train: Data, test: Data, prompts: Tensor) -> dict[str, float]:
    """The scores of the module's docstring, by name."""
    objective, encoders = learner.objective, learner.encoders
    heads = objective.heads()
    few = torch.where(train["label"] >= 0)[0][:1500]
    features = [
        {name: encoders[name](x, pooled_only=True).pooled for name, x in views(data, rows).items()}
        for data, rows in ((train, few), (test, torch.arange(len(test["label"]))))
    ]
    embeddings = [{name: objective.projections[name](x) for name, x in split.items()} for split in features]
    single = test["label"] >= 0
    wanted = test["label"][single]
    sentences = F.normalize(heads["text"](encoders["text"](prompts, pooled_only=True).pooled), dim=-1)
    classes = F.normalize(sentences.unflatten(0, (10, -1)).mean(1), dim=-1)
    found = {}
    for name in ("image", "audio"):
        cosines = F.normalize(heads[name](features[1][name][single]), dim=-1) @ classes.T
        found[f"{name}/zero_shot"] = float((cosines.argmax(1) == wanted).float().mean())
    for name in VIEWS:
        for which, (seen, unseen) in (("features", features), ("embeddings", embeddings)):
            answers = probe(seen[name], train["label"][few], unseen[name][single])
            found[f"{name}/probe_{which}"] = float((answers == wanted).float().mean())
        found[f"{name}/effective_rank"] = effective_rank(embeddings[1][name]) or 0.0
    for pair in objective.prediction.pairs:
        for a, b in ((pair.first, pair.second), (pair.second, pair.first)):
            x, y = (embeddings[1][name] for name in (a, b))
            error = (objective.prediction.predict(a, b, x) - y).square().mean()
            found[f"{a}_to_{b}/R2"] = 1 - float(error / y.var(0).mean())
    return {name: round(value, 3) for name, value in found.items()}


def probe(seen: Tensor, labels: Tensor, unseen: Tensor) -> Tensor:
    """Classes [m] of features [m, D] by ridge regression of one-hot labels [n] on standardised features [n, D]."""
    mean, deviation = seen.mean(0), seen.std(0) + 1e-6
    rows, others = (F.pad((x - mean) / deviation, (0, 1), value=1.0).double() for x in (seen, unseen))
    matrix = rows.T @ rows + 20 * torch.eye(rows.shape[1], dtype=rows.dtype)
    return (others @ torch.linalg.solve(matrix, rows.T @ F.one_hot(labels, 10).double())).argmax(1)


if __name__ == "__main__":
    main()
