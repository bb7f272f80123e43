"""The model card beside an export: how to load it, figures with intervals, data, recipe, and what was checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmssl.recipe.export import SAMPLES, TOLERANCE, Check, ExportTarget
from mmssl.recipe.model import Model
from mmssl.reporting.report import read_curves
from mmssl.reporting.run_report import latest_scores
from mmssl.training.checkpoints.read import read_numbers

USE: Mapping[ExportTarget, str] = {
    "open_clip": 'import open_clip\n\nmodel, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")\n'
    'tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")',
    "transformers": 'from transformers import AutoModel, AutoProcessor\n\nmodel = AutoModel.from_pretrained("FOLDER")\n'
    'processor = AutoProcessor.from_pretrained("FOLDER", backend="pil")  # other backends resize pictures otherwise\n'
    'inputs = processor(text=texts, images=pictures, padding="max_length", truncation=True, return_tensors="pt")\n'
    "# The processor repairs neither HTML entities nor broken encodings in texts, which training did.",
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("FOLDER/MODALITY.onnx")\n'
    'rows = session.run(None, {"input": views})[0]  # of the views "eval" of the recipe; embeddings have unit norm, features not',
    "safetensors": 'import mmssl\n\nmodel = mmssl.load("FOLDER")',
}
LIBRARIES: Mapping[ExportTarget, str] = {
    "open_clip": "open_clip",
    "transformers": "transformers",
    "onnx": "onnx",
    "safetensors": "mmssl",
}


def write_card(model: Model, check: Check, target: ExportTarget, path: Path, source: Path) -> None:
    """Write the card of an export as Markdown with the front matter of model hubs.

    Args:
        model: that was exported. check: what was found.
        target: the library. path: of the card.
        source: run or checkpoint folder, whose metrics hold the figures.
    """
    path.write_text("\n".join(_lines(model, check, target, source)) + "\n", encoding="utf-8")


def _lines(model: Model, check: Check, target: ExportTarget, source: Path) -> Iterator[str]:
    recipe = model.recipe
    yield "\n".join(
        ["---", f"library_name: {LIBRARIES[target]}", "tags: [mmssl, contrastive]", "---", f"# {recipe.name}", ""]
    )
    heads = model.embedding.heads
    shared, alone = (
        ", ".join(f"{name} ({recipe.encoders[name].kind})" for name in check.difference if (name in heads) == inside)
        for inside in (True, False)
    )
    towers = " and ".join([*([f"{shared} in one space"] if shared else []), *([f"{alone} alone"] if alone else [])])
    imported = model.checkpoint is not None and "imported" in read_numbers(model.checkpoint)
    origin = "imported from another library" if imported else "trained with mmssl"
    yield f"A model of {towers}, {origin}, of the objective `{recipe.objective.kind}`."
    yield "\n".join(["", "## Use", "", "```python", USE[target], "```", "", "## Figures", ""])
    run = source if (source / "metrics.jsonl").exists() else source.parent.parent
    curves = read_curves(run / "metrics.jsonl")  # none of an imported model
    rows = [*_figures(latest_scores(curves, [*recipe.evaluators]))]
    yield (
        "\n".join(["| evaluator | metric | value | 95 % interval |", "|---|---|---|---|", *rows])
        if rows
        else "None were measured."
    )
    yield "\n".join(
        [
            "",
            "## Check of this export",
            "",
            "| modality | largest difference | smallest cosine, own preprocessing |",
            "|---|---|---|",
        ]
    )
    for name, difference in check.difference.items():
        cosine = f"{check.cosine[name]:.6f}" if name in check.cosine else "-"
        yield f"| {name} | {difference:.2g} | {cosine} |"
    compared = "features, scaled to unit norm," if alone else "embeddings of unit norm"
    yield f"\nUp to {SAMPLES} real inputs of each modality; {compared} may differ by {TOLERANCE:g}."
    for name, fact in check.facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in fact.items()) if isinstance(fact, Mapping) else fact
        yield f"- {name}: {shown}"
    names = sorted({Path(str(shard)).name for shard in _shards(recipe.data.model_dump(mode="json"))})
    yield "\n".join(
        [
            "",
            "## Data",
            "",
            f"Training shards: {', '.join(f'`{name}`' for name in names)}. Their licences hold for this model, too.",
        ]
    )
    yield "\n".join(["", "## Recipe", "", "```yaml", recipe.to_yaml().rstrip(), "```"])


def _figures(scores: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Rows of the scores that have an interval."""
    for evaluator, values in scores.items():
        for metric, value in values.items():
            low, high = (values.get(f"{metric}_ci95_{end}") for end in ("low", "high"))
            if low is not None and high is not None:
                yield f"| {evaluator} | {metric} | {value:.4f} | {low:.4f} to {high:.4f} |"


def _shards(data: Any) -> Iterator[str]:
    """Every entry under a key `shards`, at any depth."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from value if key == "shards" and isinstance(value, list) else _shards(value)
    elif isinstance(data, list):
        for value in data:
            yield from _shards(value)
