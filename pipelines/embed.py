"""`mmssl embed`: write the embeddings of shards, for search and analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import ARCH
from pipelines.outputs import local_path

CHECKPOINT = Annotated[
    Path,
    typer.Argument(callback=local_path, help="A run or checkpoint folder; or a model, as `mmssl import` takes them."),
]


def embed(
    checkpoint: CHECKPOINT,
    shards: Annotated[list[str], typer.Option(help="Folder, path or brace pattern; may be given several times.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", callback=local_path, help="Folder for the arrays; made if needed.")
    ],
    modality: Annotated[
        list[str] | None, typer.Option(help="May be given several times. Default: all in the shared space.")
    ] = None,
    features: Annotated[
        bool, typer.Option("--features", help="Pooled encoder features before any head, not embeddings.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Write float16 instead of float32.")] = False,
    which: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint of a run folder.")] = "best",
    batch_size: Annotated[int, typer.Option(min=1, help="Samples encoded at a time.")] = 256,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    arch: ARCH = None,
) -> None:
    """Embed shards: `DIR/<modality>.npy` [rows, E] of unit norm, `DIR/<modality>.samples.npy` [rows] with the number of the
    sample of each row, `DIR/keys.txt` with a key a line, and `DIR/manifest.json`.

    A sample with several captions gives several rows; a sample that lacks a modality, or cannot be decoded, gives none and is
    counted in the manifest. A modality that no sample has gets no file, and is an error if --modality names it. Files appear only
    when all are finished.

    Examples:

    `mmssl embed runs/vit_b_32 --shards 'test/{000000..000007}.tar' --out embeddings`

    `accelerate launch --num_processes 8 -m pipelines.embed runs/vit_b_32 --shards test --out embeddings`
    """
    from mmssl.evaluation.embed import write_embeddings
    from mmssl.recipe.load import load
    from mmssl.training.checkpoints.manifest import weights_digest
    from mmssl.training.runtime.console import say
    from mmssl.training.runtime.launch import Launch
    from pipelines.command import one_of

    launch = Launch("fp32", one_of("--device", device, ("auto", "cpu", "cuda")))
    try:
        model = load(checkpoint, which=one_of("--which", which, ("best", "last")), device=launch.device, arch=arch)
        allowed = tuple(model.recipe.encoders if features else model.embedding.heads)
        written = write_embeddings(
            model.embedding,
            model.modalities,
            shards,
            out,
            wanted=[one_of("--modality", name, allowed) for name in modality or allowed],
            required=bool(modality),
            features=features,
            half=half,
            batch_size=batch_size,
            workers=workers,
            remote=model.recipe.data.cache.build(model.recipe.data.allow_pipe),
            source={
                "checkpoint": str(model.checkpoint.resolve()) if model.checkpoint else str(model.recipe.weights),
                **({"weights": weights_digest(model.checkpoint)} if model.checkpoint else {}),
                "recipe": model.recipe.name,
            },
        )
        for name, rows in written.items():
            say(
                f"{name}: {rows} rows in {out / f'{name}.npy'}"
                if rows
                else f"{name}: no sample has it, so it has no file"
            )
    finally:
        launch.close()


if __name__ == "__main__":
    from pipelines.command import single

    single(embed)
