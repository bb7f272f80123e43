"""Parts of `mmssl shards check`: what its options mean, and the audit of a recipe for what its run will need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from mmssl.curation.check_report import CheckReport
    from mmssl.data.modality import Modality
    from mmssl.recipe.recipe import Recipe


@dataclass(frozen=True)
class RecipeReport:
    """The audits of the shards of a recipe, and what its run would refuse at the start.

    Attributes:
        sources: name of a source -> its audit.
        evaluators: shards of an evaluator, as "NAME: SHARDS" -> their audit.
        refused: sentences.
    """

    sources: Mapping[str, CheckReport]
    evaluators: Mapping[str, CheckReport]
    refused: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that a run refuses."""
        return not self.refused and all(report.ok for report in (*self.sources.values(), *self.evaluators.values()))

    def table(self) -> str:
        """The audits as text, one after the other."""
        parts = [f"source {name}\n{report.table()}" for name, report in self.sources.items()]
        parts += [f"evaluators.{name}\n{report.table()}" for name, report in self.evaluators.items()]
        return "\n\n".join([*parts, *(f"the run refuses: {sentence}" for sentence in self.refused)])

    def to_json(self) -> str:
        """All as a JSON object."""
        import json

        audits = {
            kind: {name: json.loads(report.to_json()) for name, report in reports.items()}
            for kind, reports in (("sources", self.sources), ("evaluators", self.evaluators))
        }
        return json.dumps({"ok": self.ok, **audits, "refused": self.refused}, indent=1)


def is_recipe(name: str) -> bool:
    """Whether an argument names a recipe: a YAML file, or a shipped recipe, or nearly one in its folder where no file is."""
    from mmssl.core.errors import did_you_mean
    from mmssl.recipe.shipped import shipped_recipes

    if name.endswith((".yaml", ".yml")) or Path(name).exists():
        return name.endswith((".yaml", ".yml"))
    folder = name.rpartition("/")[0]
    return name in shipped_recipes() or bool(
        did_you_mean(name, [one for one in shipped_recipes() if one.rpartition("/")[0] == folder])
    )


def check_with_manifests(
    against_manifest: bool, shards: Sequence[str], *modalities: Any, **options: Any
) -> CheckReport:
    """`check_shards`, with the comparison with manifests."""
    from mmssl.curation.check import check_shards
    from mmssl.curation.check_manifest import compare_with_manifests

    differences = compare_with_manifests(shards) if against_manifest else []
    return check_shards(shards, *modalities, **options).with_faults(differences)


def recipe_alone(
    arguments: list[str], needs: str | None, require: list[str] | None, cache: Path | None, allow_pipe: bool
) -> Recipe:
    """The recipe of the command line; it says itself what the options say of shards."""
    from mmssl.recipe.shipped import find_recipe

    given = {"--needs": needs, "--require": require, "--cache": cache, "--allow-pipe": allow_pipe}
    for option, value in given.items():
        if value:
            raise typer.BadParameter(f"{option} has no effect beside a recipe, which says it: leave {option} out")
    return find_recipe(arguments[0], arguments[1:])


def modality_names(needs: str | None) -> list[str] | None:
    """The names in `--needs`, of modalities with usual settings."""
    from mmssl.core.errors import RecipeError, did_you_mean
    from mmssl.data.modalities.usual import usual_modalities

    names = needs.split(",") if needs is not None else None
    known = usual_modalities() if names else {}
    for name in names or ():
        if name not in known:
            raise RecipeError(
                f"--needs: got {name!r}{did_you_mean(name, known)}, wanted some of {','.join(known)}; for modalities of a recipe, "
                "check the recipe"
            )
    return names


def check_recipe(recipe: Recipe, audit: Callable[..., CheckReport], **options: Any) -> RecipeReport:
    """Audit every source of a recipe with the modalities that its objective needs, and the shards of its evaluators.

    Args:
        recipe: of the run; its encoders are built, to know what the objective needs.
        audit: `mmssl.curation.check.check_shards`, maybe with a comparison with manifests.
        **options: of `audit`.

    Raises:
        RecipeError, CheckpointError: the recipe cannot be built.
    """
    from mmssl.core.errors import DataError
    from mmssl.core.plan import Plan
    from mmssl.recipe.checks import all_needs
    from mmssl.recipe.refusals import refusals

    modalities = recipe.build_modalities()
    wanted = all_needs(recipe.build_learner(modalities, Plan.unknown()).objective)
    used = {name: modalities[name] for name in wanted}
    needs = [name for name in used if name not in recipe.data.optional]
    sources: dict[str, CheckReport] = {}
    refused: list[str] = []
    for name, shards in sources_of(recipe).items():
        try:
            remote = recipe.data.cache.build(recipe.data.allow_pipe)
            sources[name] = audit(shards, used, needs=needs, remote=remote, **options)
        except DataError as error:
            refused.append(f"source {name}: {error}")
    refused += refusals(recipe, modalities, wanted)
    return RecipeReport(sources, _audit_evaluators(recipe, modalities, audit, **options), tuple(refused))


def _audit_evaluators(
    recipe: Recipe, modalities: Mapping[str, Modality], audit: Callable[..., CheckReport], **options: Any
) -> dict[str, CheckReport]:
    """ "NAME: SHARDS" -> audit of the modalities that the evaluator reads. What cannot be opened is among the refusals."""
    from mmssl.core.errors import MmsslError

    reports: dict[str, CheckReport] = {}
    try:
        evaluators = recipe.build_evaluators(modalities)
    except MmsslError:
        return reports
    done: dict[str, CheckReport] = {}
    for name, (evaluator, _) in evaluators.items():
        for shards, used in (one for kept in evaluator.kept for one in kept.reads):
            same = repr((shards, sorted(used)))
            if same not in done:
                try:
                    remote = recipe.data.cache.build(recipe.data.allow_pipe)
                    done[same] = audit(shards, used, needs=(), remote=remote, **options)
                except MmsslError:
                    continue
            reports[f"{name}: {' '.join(shards)}"] = done[same]
    return reports


def sources_of(recipe: Recipe) -> dict[str, Sequence[str]]:
    """Name of a source of a recipe -> its shards; "train" where it has shards without names."""
    if recipe.data.shards is not None:
        return {"train": recipe.data.shards}
    return {name: source.shards for name, source in (recipe.data.sources or {}).items()}
