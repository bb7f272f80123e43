"""The scorer of `mmssl shards filter --run`: a model that encodes the samples, or embeddings that are already there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.embedded import model_facts
from pipelines.measured import model_of, refuse_alone
from pipelines.progress import Bar

if TYPE_CHECKING:
    import numpy as np

    from mmssl.curation.filter_similarity import PairScorer
    from mmssl.recipe.model import Model

MODEL_FACTS = ("checkpoint", "weights", "model", "recipe")
"""What `model_facts` says."""


@contextmanager
def pair_scorer(run: Path | None, options: Mapping[str, Any], bar: Bar) -> Iterator[PairScorer | None]:
    """The scorer of a run, or of a folder of embeddings.

    Args:
        run: what --run names; None: there is no scorer.
        options: name -> value of those that belong to it: --pair, --which, --device, --batch-size, --workers, --arch, --tokenizer.
        bar: shows the encoding.

    Raises:
        RecipeError: a pair that the model does not compare. CheckpointError, DataError: there is no model, or no embeddings.
    """
    for option, value in options.items():
        refuse_alone(option, value, {"--run": run})
    if run is None:
        yield None
    elif (run / "keys.txt").is_file():
        for option, value in options.items():
            refuse_alone(option, None if option == "--pair" else value, {"a model that encodes": None})
        yield _of_embeddings(run, options["--pair"])
    else:
        from mmssl.training.runtime.launch import Launch
        from pipelines.command import one_of

        launch = Launch("fp32", one_of("--device", options["--device"] or "auto", ("auto", "cpu", "cuda")))
        try:
            arch, tokenizer = options["--arch"], options["--tokenizer"]
            yield _of_model(model_of(run, options["--which"], launch, None, [], arch, tokenizer), options, bar)
        finally:
            launch.close()


def _of_model(model: Model, options: Mapping[str, Any], bar: Bar) -> PairScorer:
    from mmssl.curation.filter_similarity import PairScorer
    from mmssl.evaluation.pair_similarity import pair_similarities

    pair = _pair(tuple(model.embedding.heads), options["--pair"])
    cosines = partial(
        pair_similarities,
        model.embedding,
        model.modalities,
        pair,
        batch_size=options["--batch-size"] or 256,
        workers=options["--workers"] or 0,
        progress=partial(bar, what="encoding"),
    )
    facts = model_facts(model)
    return PairScorer(pair, cosines, _probabilities(model.checkpoint, facts, pair), facts)


def _of_embeddings(path: Path, given: str | None) -> PairScorer:
    from mmssl.curation.filter_similarity import PairScorer
    from mmssl.evaluation.embeddings.search import EmbeddedFolder
    from mmssl.evaluation.pair_similarity import embedded_similarities

    folder = EmbeddedFolder.open(path)
    pair = _pair(folder.manifest["modalities"], given)
    facts = {name: folder.manifest[name] for name in MODEL_FACTS if name in folder.manifest}
    probabilities = _probabilities(Path(facts["checkpoint"]) if "checkpoint" in facts else None, facts, pair)
    cosines = partial(embedded_similarities, folder, pair)
    return PairScorer(pair, cosines, probabilities, facts | {"embeddings": str(path.resolve())})


def _probabilities(
    checkpoint: Path | None, facts: Mapping[str, Any], pair: tuple[str, str]
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Probabilities [N] of a match from cosines [N], as `Model.match` has them; None: there is no calibration."""
    import torch

    from mmssl.recipe.calibrations import calibration_of, read_calibrations

    fitted = {} if checkpoint is None else read_calibrations(checkpoint, facts.get("model", ""))
    calibration = calibration_of(fitted, pair)
    return None if calibration is None else lambda cosines: calibration(torch.from_numpy(cosines)).numpy()


def _pair(space: Sequence[str], given: str | None) -> tuple[str, str]:
    """The modalities that --pair names; by default those of the shared space, if there are two.

    Raises:
        RecipeError: others than two modalities of the shared space.
    """
    from mmssl.core.errors import RecipeError
    from pipelines.command import one_of

    if len(space) < 2:
        raise RecipeError(
            f"--run: got a model whose shared space has {', '.join(space) or 'no modalities'}, wanted one that compares two: "
            "trained with pairs, such as image and text"
        )
    names = [one_of("--pair", name, tuple(space)) for name in given.split(",")] if given else [*space]
    if len(names) != 2 or names[0] == names[1]:
        raise RecipeError(
            f"--pair: got {given or 'nothing'}, wanted two different modalities as A,B; the shared space has {', '.join(space)}"
        )
    return names[0], names[1]
