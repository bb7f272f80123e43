"""Shards that the tests of the data floor share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.data.make import Record, pairs, write


@pytest.fixture(scope="session")
def photos() -> list[bytes]:
    """Two real photographs, 640 x 427 JPEG."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "images"
    return [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three uneven shards: 7 + 11 + 5 samples of jpg, txt and cls, keys 0000 ... 0022."""
    folder = tmp_path_factory.mktemp("shards")
    for number, (start, count) in enumerate([(0, 7), (7, 11), (18, 5)]):
        write(folder / f"{number:06d}.tar", pairs(start, count))
    return folder


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    """Write one shard of the given records."""

    def make(records: Iterable[Record], name: str = "000000.tar") -> Path:
        return write(tmp_path / name, records)

    return make
