"""Test sets by address: the same evaluators and scores as of the folder, read in ranges from a server of this machine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmssl.core.errors import DataError
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modality import Modality
from mmssl.data.shards.cache import Cache
from mmssl.data.shards.remote import CacheConfig, Remote
from mmssl.evaluation.sets import files_address, set_evaluators
from mmssl.recipe.suite import Suite, find_suite
from tests.data.servers import Server, serve
from tests.evaluation.world import NAMES, colour_sample, configured, knowing_model, modalities, write_shard

SHARED = ("picture", "words")


def several(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([number % len(NAMES) == i or (number + i) % 3 == 0 for i in range(len(NAMES))]))
    return file.getvalue()


def every() -> dict[str, Modality]:
    return {**modalities(), "multi_label": configured(MultiLabelConfig).build("multi_label")}


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    members = {"single": ("png", "cls"), "multilabel": ("png", "npy"), "retrieval": ("png", "txt")}
    for kind, wanted in members.items():
        folder = tmp_path / "sets" / kind
        samples = [
            (key, {**fields, "npy": several(i)}) for i in range(12) for key, fields in [colour_sample(i, 1 + i % 3)]
        ]
        chosen = [(key, {member: fields[member] for member in wanted}) for key, fields in samples]
        write_shard(folder / "test/0.tar", chosen[:5])
        write_shard(folder / "test/1.tar", chosen[5:])
        (folder / "test/nshards.txt").write_text("2\n")
        if kind != "single":
            (folder / "dataset_type.txt").write_text(kind)
        if kind != "retrieval":
            (folder / "classnames.txt").write_text("\n".join(NAMES))
            (folder / "zeroshot_classification_templates.txt").write_text("a {c} picture\n{c}\n")
    return tmp_path / "sets"


@pytest.fixture
def server(sets: Path) -> Iterator[Server]:
    with serve() as made:
        made.files = {f"/{path.relative_to(sets)}": path.read_bytes() for path in sets.rglob("*") if path.is_file()}
        yield made


def client(folder: Path) -> Remote:
    remote = CacheConfig(folder=folder / "cache", timeout=5, deadline=5).build()
    assert isinstance(remote.cache, Cache)
    return remote


def measure(place: Path | str, name: str, remote: Remote, folder: Path) -> dict[str, Any]:
    scores = {}
    for task, config in set_evaluators(place, name, every(), SHARED, remote).items():
        cached = config.model_copy(update={"cache": CacheConfig(folder=folder / "cache", timeout=5, deadline=5)})
        with cached.build(every()) as evaluator:
            scores[task] = dict(evaluator.evaluate(knowing_model()))
    return scores


@pytest.mark.parametrize("kind", ["single", "multilabel", "retrieval"])
def test_an_address_gives_the_scores_of_its_folder(sets: Path, server: Server, tmp_path: Path, kind: str) -> None:
    local = measure(sets / kind, kind, client(tmp_path), tmp_path)
    remote = measure(f"{server.url}/{kind}", kind, client(tmp_path), tmp_path)
    assert local == remote
    (scores,) = local.values()
    assert scores["n"] == 12
    shards = [asked for path, asked in server.log if path.endswith("0.tar")]
    assert shards
    assert all(asked.startswith("bytes=") for asked in shards), "ranges only"
    if kind == "retrieval":
        assert scores["n_words"] == sum(1 + i % 3 for i in range(12)), "a caption a line"


def test_a_suite_names_addresses_and_what_is_wrong_with_one_is_told(server: Server, tmp_path: Path) -> None:
    suite = find_suite(f"{server.url}/single/?token=a")
    assert suite.sets == (f"{server.url}/single/?token=a",)
    found = Suite(sets=(f"{server.url}/single", f"{server.url}/nothing")).configs(
        tmp_path, every(), SHARED, client(tmp_path)
    )
    assert list(found) == ["single", "nothing"]
    assert isinstance(found["nothing"], DataError)
    assert "test/nshards.txt says '', wanted the number of its shards" in str(found["nothing"])
    server.files["/single/test/nshards.txt"] = b"3"
    (config,) = set_evaluators(f"{server.url}/single", "single", every(), SHARED, client(tmp_path)).values()
    with pytest.raises(DataError, match=r"2\.tar"), config.build(every()) as evaluator:
        evaluator.open()
    server.files["/single/dataset_type.txt"] = b"images"
    with pytest.raises(DataError, match="got 'images', wanted retrieval or multilabel"):
        set_evaluators(f"{server.url}/single", "single", every(), SHARED, client(tmp_path))


def test_pages_of_the_hub_become_their_files() -> None:
    page = "https://huggingface.co/datasets/clip-benchmark/wds_cars/tree/main"
    assert files_address(page) == "https://huggingface.co/datasets/clip-benchmark/wds_cars/resolve/main"
    assert files_address("hf://datasets/clip-benchmark/wds_cars/") == "hf://datasets/clip-benchmark/wds_cars"
