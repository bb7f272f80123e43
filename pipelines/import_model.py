"""`mmssl import`: make a run folder of a model of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import ARCH, TOKENIZER


def import_model(
    source: Annotated[
        str, typer.Argument(help="A file, a model folder, hf-hub:ORG/NAME, or open_clip's MODEL:TAG; see below.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Run folder to write; new, or empty.")],
    arch: ARCH = None,
    tokenizer: TOKENIZER = None,
) -> None:
    """Make a run folder of a model of open_clip (CLIP, SigLIP, ...), transformers (CLIP, SigLIP, SigLIP 2, AltCLIP, ChineseCLIP,
    CLAP), LAION-CLAP or ImageBind (pictures and texts), with a complete recipe: it evaluates, embeds, fine-tunes and exports as a
    run of mmssl does.

    Hub names and tags are looked up in the local cache; nothing is downloaded, and no code of a checkpoint is run.

    Examples:

    `mmssl import hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K --out clip`

    `mmssl import ViT-B-32:laion2b_s34b_b79k --out clip`

    `mmssl import epoch_32.pt --arch ViT-B-32 --out clip`

    `mmssl import clip-vit-base-patch32 --out clip` (a folder of transformers)

    `mmssl import 630k-audioset-best.pt --tokenizer roberta-base --out clap`
    """
    from mmssl.recipe.imported import describe_model, write_imported_run
    from mmssl.recipe.start import start_lines
    from mmssl.training.runtime.console import say

    described = describe_model(Path(source), arch, tokenizer)
    recipe, learner = write_imported_run(described, out)
    for line in (*start_lines(learner, recipe.seed), *described.notes):
        say(line)
    say(
        f"{source} written to {out}; fine-tune it: mmssl pretrain {out / 'recipe.yaml'} data.shards='[\"shards/train\"]'"
    )


if __name__ == "__main__":
    from pipelines.command import single

    single(import_model)
