"""`mmssl export`: write a trained model for another library, checked on real inputs, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.options import ARCH, TOKENIZER
from pipelines.outputs import local_path

if TYPE_CHECKING:
    from mmssl.recipe.export import ExportTarget

TARGETS: tuple[ExportTarget, ...] = ("open_clip", "transformers", "onnx", "safetensors")


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            callback=local_path, help="A run or checkpoint folder; or a model, as `mmssl import` takes them."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", callback=local_path, help="Folder to write; must not exist.")],
    to: Annotated[
        str, typer.Option(metavar="open_clip|transformers|onnx|safetensors", help="The library.")
    ] = "open_clip",
    which: Annotated[str, typer.Option(metavar="best|last", help="Which checkpoint of a run folder.")] = "best",
    ema: Annotated[bool, typer.Option(help="Use the EMA weights if the run kept them.")] = True,
    samples: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARDS", help="Real inputs for the check. Default: the training shards."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="For onnx: also write weights of 8 bits, and measure them.")
    ] = False,
    arch: ARCH = None,
    tokenizer: TOKENIZER = None,
) -> None:
    """Write a trained model for another library. Real inputs of every modality go through both; a model whose embeddings differ by
    more than 1e-5 is not left there. LoRA adapters are merged. README.md is its model card.

    **open_clip**: `open_clip.create_model_and_transforms("local-dir:DIR")`. **transformers**: `CLIPModel`, `SiglipModel`,
    `ClapModel` or `VisionTextDualEncoderModel`, with processor. Both hold two towers, one of texts.
    **onnx**: a file a modality, with a dynamic batch. **safetensors**: plain weights that `weights:` and every verb take. Both take
    models without a shared space, too: of their modalities, features go through both.

    Examples:

    `mmssl export runs/vit_b_32 --out vit_b_32_open_clip`

    `mmssl export runs/vit_b_32 --to transformers --out vit_b_32_transformers --samples shards/test`

    `mmssl export runs/vit_b_32 --to onnx --int8 --out vit_b_32_onnx`
    """
    from mmssl.recipe.export import export_model as write
    from mmssl.recipe.imported import as_run
    from mmssl.reporting.model_card import write_card
    from mmssl.training.runtime.console import say
    from pipelines.command import one_of

    target = one_of("--to", to, TARGETS)
    if int8 and target != "onnx":
        raise typer.BadParameter(f"--int8: got it with --to {target}, wanted --to onnx")
    choice: Literal["best", "last"] = one_of("--which", which, ("best", "last"))
    with as_run(checkpoint, arch, tokenizer) as run:
        model, check = write(run, out, target, which=choice, ema=ema, samples=samples or (), int8=int8)
        write_card(model, check, target, out / "README.md", run)
    found = ", ".join(f"{name} {difference:.1g}" for name, difference in check.difference.items())
    say(f"{checkpoint} written to {out} for {target}; largest difference: {found}")


if __name__ == "__main__":
    from pipelines.command import single

    single(export)
