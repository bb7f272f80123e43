"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.options import client_for


@pytest.mark.parametrize("allow_pipe", [True, False])
def test_urls_have_a_client_with_the_given_cache_and_local_shards_none(tmp_path: Path, allow_pipe: bool) -> None:
    assert client_for(["shards/{0..9}.tar", "more"], tmp_path, allow_pipe) is None
    client = client_for(["https://host/{0..9}.tar"], tmp_path, allow_pipe)
    assert client is not None
    assert (client.cache.folder, client.storage.allow_pipe) == (tmp_path, allow_pipe)
