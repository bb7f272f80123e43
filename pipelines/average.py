"""`mmssl average`: average the weights of models (soups, interpolation)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def average(
    sources: Annotated[
        list[Path], typer.Argument(help="Run folders or checkpoint folders of one recipe, at least two.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint folder to write.")],
    weights: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="A weight for each, with sum 1. Default: equal ones.")
    ] = None,
    greedy: Annotated[
        str | None,
        typer.Option(metavar="EVALUATOR/METRIC", help="Greedy soup: add a model only where this score does not fall."),
    ] = None,
    suite: Annotated[
        Path | None,
        typer.Option(metavar="SUITE", help="For --greedy: a YAML file with `evaluators:`. Default: the recipe's."),
    ] = None,
) -> None:
    """Average the weights of models of one recipe that share a start: a uniform or a greedy soup, or an interpolation.

    A greedy soup chooses by validation scores: measure the result on other data.

    Examples:

    `mmssl average runs/a runs/b runs/c --out soup`

    `mmssl average runs/a runs/b runs/c --out soup --greedy retrieval/image_to_text_R@1`

    `mmssl average runs/start runs/finetuned --weights 0.4,0.6 --out between`
    """
    from mmssl.recipe.average_scores import average_runs
    from mmssl.recipe.suite import Suite
    from mmssl.recipe.validate import read_recipe_text, validate_text
    from mmssl.training.runtime.console import say

    if len(sources) < 2:
        raise typer.BadParameter(f"got {len(sources)} model, wanted two or more to average")
    if suite is not None and greedy is None:
        raise typer.BadParameter("--suite has no effect without --greedy: add it, or leave --suite out")
    shares = None if weights is None else _shares(weights, len(sources))
    if shares is not None and greedy is not None:
        raise typer.BadParameter(
            "got --weights and --greedy, wanted one of them: a greedy soup weights its models equally"
        )
    listed = {} if suite is None else validate_text(Suite, read_recipe_text(suite), str(suite)).evaluators
    say(average_runs(sources, out, shares, greedy, listed))


def _shares(text: str, count: int) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != count or not abs(sum(shares) - 1) < 1e-6:
        raise typer.BadParameter(f"--weights: got {text!r}, wanted {count} numbers with sum 1, such as 0.4,0.6")
    return shares


if __name__ == "__main__":
    from pipelines.command import single

    single(average)
