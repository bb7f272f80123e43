"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmssl.evaluation.collect import KeptShards
from mmssl.recipe.shipped import find_recipe
from pipelines.cli import full
from pipelines.command import guarded
from pipelines.options import client_for


@pytest.mark.parametrize("allow_pipe", [True, False])
def test_urls_have_a_client_with_the_given_cache_and_local_shards_none(tmp_path: Path, allow_pipe: bool) -> None:
    assert client_for(["shards/{0..9}.tar", "more"], tmp_path, allow_pipe) is None
    client = client_for(["https://host/{0..9}.tar"], tmp_path, allow_pipe)
    assert client is not None
    assert (client.cache.folder, client.storage.allow_pipe) == (tmp_path, allow_pipe)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("shards", "pack", "https://host/a.csv", "out"), "got the URL 'https://host/a.csv', wanted a path"),
        (("evaluate", "s3://runs/first"), "got the URL 's3://runs/first', wanted a path of this machine"),
        (("pretrain", "quickstart/image_text", "weights=https://host/w.pt"), "got the URL 'https://host/w.pt', wanted"),
    ],
)
def test_urls_where_paths_are_wanted(arguments: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert guarded(full(), list(arguments)) == 2
    assert said in " ".join(capfd.readouterr().err.replace("│", "").split())


def test_evaluators_read_remote_shards_through_the_cache_of_the_recipe(tmp_path: Path) -> None:
    evaluators = "{r: {kind: retrieval, shards: ['https://host/0.tar'], pair: [image, text]}}"
    own = f"{{r: {{kind: retrieval, shards: ['https://host/0.tar'], pair: [image, text], cache: {{folder: {tmp_path / 'own'}}}}}}}"
    for text, name in ((evaluators, "shared"), (own, "own")):
        changes = [f"data.cache.folder={tmp_path / 'shared'}", "data.allow_pipe=true", f"evaluators={text}"]
        recipe = find_recipe("quickstart/image_text", changes)
        (evaluator, _) = recipe.build_evaluators(recipe.build_modalities())["r"]
        (kept,) = evaluator.kept
        assert isinstance(kept, KeptShards)
        assert kept.index.remote is not None
        assert kept.index.remote.cache.folder == tmp_path / name
        assert kept.index.remote.storage.allow_pipe
