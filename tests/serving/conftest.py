"""A service of the tiny world of known colours: a folder of embeddings that a knowing model made, and its application."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmssl.evaluation.embeddings.search import EmbeddedFolder
from mmssl.evaluation.embeddings.write import write_embeddings
from mmssl.recipe.model import Model
from mmssl.serving.limits import Limits
from mmssl.serving.service import Service
from tests.evaluation.world import colour_shards, knowing_model, modalities

SAMPLES = 16


@dataclass
class Served:
    """A service, and how it is asked."""

    service: Service
    client: Any


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedFolder:
    folder = tmp_path_factory.mktemp("served")
    shards = colour_shards(folder / "shards", SAMPLES)
    write_embeddings(knowing_model(), modalities(), shards, folder / "out", wanted=["picture", "words"])
    return EmbeddedFolder.open(folder / "out")


def knowing() -> Model:
    """The model as `mmssl.load` gives it, of the parts that a service asks for."""
    made = Model.__new__(Model)
    made.recipe, made.checkpoint = SimpleNamespace(name="knowing"), None  # type: ignore[assignment]
    made.embedding, made.modalities = knowing_model(), modalities()
    return made


@pytest.fixture
def serve(embedded: EmbeddedFolder) -> Iterator[Callable[..., Served]]:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    from fastapi.testclient import TestClient

    from mmssl.serving.app import make_app

    clients: list[Any] = []

    def start(limits: Limits | None = None, **searches: Any) -> Served:
        found = {name: partial(embedded.search, name) for name in ("picture", "words")}

        def show(name: str, number: int, item: int) -> dict[str, str]:
            return {"text": f"<b>{name} {number} {item}</b>"}

        service = Service(knowing(), embedded, {**found, **searches}, show, limits)
        client = TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False)
        clients.append(client.__enter__())
        return Served(service, client)

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
