"""Export a trained model for another library: write, check on real inputs, and only then put it in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, MmsslError, NumericError, RecipeError, os_words
from mmssl.data.modalities.views.image import EvalView
from mmssl.data.samples import BadSample, read_sample
from mmssl.data.shards.index import ShardIndex
from mmssl.evaluation.common import inference
from mmssl.interop.towers import Inputs, Towers
from mmssl.recipe.average import write_model
from mmssl.recipe.load import load, load_learner
from mmssl.recipe.model import Model
from mmssl.recipe.suite import evaluation_modalities

ExportTarget = Literal["open_clip", "transformers", "onnx", "safetensors"]
SAMPLES = 8
"""Real inputs of each modality in the check."""
TOLERANCE = 1e-5
"""Largest difference of a number in an embedding of unit norm."""
OF_EMBEDDINGS = ("zero_shot", "retrieval", "class_retrieval")
"""Kinds of evaluators that measure embeddings alone."""
LEAST_COSINE = 0.999
"""Smallest cosine of embeddings of a file that went through the other library's own preprocessing."""


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        difference: modality -> largest difference of a number in embeddings of equal views.
        cosine: modality -> smallest cosine of embeddings of files, through the library's own preprocessing; empty: it has none.
        facts: further measured figures, for the card.
    """

    difference: Mapping[str, float]
    cosine: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def export_model(
    path: Path,
    out: Path,
    target: ExportTarget,
    *,
    which: Literal["best", "last"],
    ema: bool,
    samples: Sequence[str],
    int8: bool,
) -> tuple[Model, Check]:
    """Write a model for a library into `out`, if it embeds real inputs as ours does; otherwise nothing is left there.

    Args:
        path: run folder or checkpoint folder. which, ema: as in `load`.
        out: new folder.
        target: the library.
        samples: shards of real inputs; empty: the training shards.
        int8: for "onnx": also write and measure towers with weights of 8 bits.

    Raises:
        RecipeError: the library cannot hold the model. DataError: no real inputs, or `out` cannot be written.
        NumericError: embeddings differ.
    """
    if out.exists():
        raise DataError(f"{out} exists already: choose another folder, or remove it")
    model = load(path, which=which, ema=ema)
    if not model.embedding.heads and target in ("open_clip", "transformers"):
        raise RecipeError(
            f"this model has no shared space, which {target} wants: its objective aligns no modalities; --to onnx and "
            "--to safetensors take encoders alone"
        )
    with _published(out) as folder:
        try:
            write = {"open_clip": _open_clip, "transformers": _transformers, "onnx": _onnx, "safetensors": _safetensors}
            check = write[target](ExportJob(model, folder, out, partial(real_inputs, model, samples), ema, int8))
        except ValueError as error:
            raise RecipeError(f"this model cannot be exported to {target}: {error}") from error
        refuse_differences(check, target)
    return model, check


def refuse_differences(check: Check, target: str) -> None:
    """Refuse an export whose embeddings differ.

    Raises:
        NumericError: says of which modality, and by how much.
    """
    for name, found in check.difference.items():
        if not found <= TOLERANCE:
            raise NumericError(
                f"{target}: embeddings of {name} differ by {found:.2g}, wanted at most {TOLERANCE:g}; nothing was written"
            )
    for name, cosine in check.cosine.items():
        if not cosine >= LEAST_COSINE:
            raise NumericError(
                f"{target}: its own preprocessing of {name} gives embeddings with a cosine of {cosine:.4f}, wanted at least "
                f"{LEAST_COSINE}; nothing was written"
            )


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place at the end, and is removed after an error."""
    folder = out.with_name(f".{out.name}.unfinished")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise DataError(f"cannot write {out}: {os_words(error)}; choose another folder") from error
    try:
        yield folder
        folder.rename(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {os_words(error)}; choose another folder") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def real_inputs(model: Model, shards: Sequence[str], names: Sequence[str]) -> Inputs:
    """The first samples that have each modality.

    Args:
        model: its modalities decode them.
        shards: empty: the training shards of the recipe.
        names: of the modalities.

    Raises:
        DataError: the shards cannot be read, or hold no sample with a modality.
    """
    try:
        indices = [ShardIndex.open(list(shards))] if shards else [source.index for source in model.recipe.data.open()]
    except DataError as error:
        raise DataError(f"the check needs real inputs: {error}; name shards of some by --samples") from error
    raw: dict[str, list[bytes]] = {name: [] for name in names}
    kept: dict[str, list[Any]] = {name: [] for name in names}
    views: dict[str, list[Tensor]] = {name: [] for name in names}
    modalities = {name: model.modalities[name] for name in names}
    for index in indices:
        for number in range(len(index)):
            if all(len(found) == SAMPLES for found in raw.values()):
                break
            try:
                encoded = read_sample(index, number, modalities, tuple(names))
                values = encoded.decode().values
            except BadSample:
                continue
            for name, value in values.items():
                if len(raw[name]) < SAMPLES:
                    view = encoded.modalities[name].view("eval")
                    x = view(value, {})
                    data = encoded.raw.fields[encoded.members[name]]
                    raw[name].append(value[0].encode() if encoded.modalities[name].language else data)
                    kept[name].append(value)
                    views[name].append(x[0] if view.ragged else x)
    lacking = [name for name, found in raw.items() if not found]
    if lacking:
        raise DataError(f"the check needs real inputs, and no sample has {lacking}; name shards with some by --samples")
    return Inputs(raw, kept, {name: torch.stack(found) for name, found in views.items()})


def largest_differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, float]:
    """Largest difference of a number, by modality; infinite where shapes differ or a number is not finite."""
    found = {}
    for name, x in ours.items():
        other = theirs[name]
        fits = x.shape == other.shape and bool(other.isfinite().all())
        found[name] = float((x - other).abs().max()) if fits else float("inf")
    return found


def embed_all(model: EmbeddingModel, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings of views, by modality; where it has none, features scaled to unit norm."""
    with inference(model):
        return {
            name: (model.embed(name, x) if name in model.heads else F.normalize(model.features(name, x), dim=-1)).cpu()
            for name, x in views.items()
        }


@dataclass(frozen=True)
class ExportJob:
    """One export.

    Attributes:
        model: to write. folder: gets the files, and is renamed to `home` if all is well.
        inputs: modalities -> real inputs.
        ema, int8: see `export_model`.
    """

    model: Model
    folder: Path
    home: Path
    inputs: Callable[[Sequence[str]], Inputs]
    ema: bool
    int8: bool


def _two_towers(job: ExportJob, write: Callable[..., dict[str, str]], embed: Callable[..., Any]) -> Check:
    towers = towers_of(job.model)
    facts = write(towers, job.folder)
    given = job.inputs([towers.first, towers.text])
    ours = embed_all(job.model.embedding, given.views)
    of_views, of_files = embed(towers, job.folder, given)
    cosine = {name: float(F.cosine_similarity(ours[name], x).min()) for name, x in of_files.items()}
    return Check(largest_differences(ours, of_views), cosine, facts)


def _open_clip(job: ExportJob) -> Check:
    from mmssl.interop.open_clip_folder import embed_open_clip, write_open_clip

    return _two_towers(job, partial(write_open_clip, home=job.home), embed_open_clip)


def _transformers(job: ExportJob) -> Check:
    from mmssl.interop.transformers_folder import embed_transformers, write_transformers

    return _two_towers(job, write_transformers, embed_transformers)


def _onnx(job: ExportJob) -> Check:
    from mmssl.interop.onnx import OPSET, OnnxTower, latency, load_onnx, write_onnx

    model, folder, int8 = job.model, job.folder, job.int8
    names = [*model.embedding.encoders]
    given = job.inputs(names)
    write_onnx(model.embedding, given.views, folder, int8=int8)
    ours = embed_all(model.embedding, given.views)
    facts: dict[str, Any] = {"opset": OPSET, "threads": 1}
    check: dict[str, float] = {}
    for kind in ("onnx", "int8.onnx") if int8 else ("onnx",):
        towers = load_onnx(folder, names, kind, heads=model.embedding.heads)
        theirs = embed_all(towers, given.views)
        if kind == "onnx":
            alone = embed_all(towers, {name: x[:1] for name, x in given.views.items()})  # the batch is dynamic
            check = {**largest_differences(ours, theirs)}
            for name, x in largest_differences({name: rows[:1] for name, rows in ours.items()}, alone).items():
                check[name] = max(check[name], x)
        for name in names:
            tower = towers.encoders[name]
            assert isinstance(tower, OnnxTower)
            facts[f"{name}.{kind}"] = {
                "bytes": (folder / f"{name}.{kind}").stat().st_size,
                "least_cosine": round(float(F.cosine_similarity(ours[name], theirs[name]).min()), 6),
                **latency(tower, given.views[name]),
            }
    if int8:
        heads = model.embedding.heads
        facts |= _accuracies(
            model, {kind: load_onnx(folder, names, f"{kind}onnx", heads=heads) for kind in ("", "int8.")}
        )
    return Check(check, {}, facts)


def _accuracies(model: Model, towers: Mapping[str, EmbeddingModel]) -> dict[str, Any]:
    """Main scores of the recipe's evaluators of embeddings, of each model; why, where one cannot be measured."""
    found: dict[str, Any] = {}
    available = evaluation_modalities(model.modalities)
    for name, config in model.recipe.evaluators.items():
        if config.kind not in OF_EMBEDDINGS:
            continue
        try:
            with config.build(available) as evaluator:
                for kind, some in towers.items():
                    scores = {
                        k: x for k, x in evaluator.evaluate(some) if k in evaluator.headlines and isinstance(x, float)
                    }
                    found[f"{name}, {kind}onnx"] = {metric: round(value, 4) for metric, value in scores.items()}
        except MmsslError as error:
            found[name] = f"not measured: {error}"
    return found


def _safetensors(job: ExportJob) -> Check:
    model, folder = job.model, job.folder
    assert model.checkpoint is not None
    recipe, learner, checkpoint = load_learner(model.checkpoint, ema=job.ema)
    folder.rmdir()
    write_model(folder, recipe, learner, {"exported": checkpoint.name})
    given = job.inputs([*model.embedding.encoders])
    ours = embed_all(model.embedding, given.views)
    return Check(largest_differences(ours, embed_all(load(folder).embedding, given.views)))


def towers_of(model: Model) -> Towers:
    """The two towers of a model that two-tower libraries can hold: one of texts, and the one of pictures or sounds beside it.

    Of several the pictures', whose pair most libraries hold.

    Raises:
        ValueError: the model has others, or no temperature for the two.
    """
    heads = [*model.embedding.heads]
    texts = [name for name in heads if model.modalities[name].language]
    paired = [name for name in heads if any(set(pair) == {name, text} for pair in model.logit_scales for text in texts)]
    pictures = [name for name in paired if isinstance(model.modalities[name].view("eval"), EvalView)]
    firsts = pictures if len(paired) > 1 else paired
    if len(texts) != 1 or len(firsts) != 1:
        raise ValueError(
            f"wanted one modality of pictures or sounds and one of texts that the objective pairs at a temperature, and this model "
            f"has {', '.join(heads)} with {', '.join('-'.join(pair) for pair in model.logit_scales) or 'no such pair'}"
        )
    first, text = firsts[0], texts[0]
    (scale,) = (scale for pair, scale in model.logit_scales.items() if set(pair) == {first, text})
    bias = next((bias for pair, bias in model.logit_biases.items() if set(pair) == {first, text}), None)
    return Towers(
        first,
        text,
        {name: model.recipe.encoders[name] for name in (first, text)},
        model.embedding,
        model.modalities,
        torch.tensor(scale).log(),
        None if bias is None else torch.tensor(bias),
    )
