"""An embedding that was stopped goes on, bit for bit as if it had not been: kill -9, errors, other numbers of processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmssl.core.errors import DataError, NumericError
from mmssl.evaluation.embeddings import write as module
from mmssl.evaluation.embeddings.pieces import finished_pieces, missing_batches, share_of
from mmssl.evaluation.embeddings.write import write_embeddings
from tests.distributed.processes import Processes
from tests.evaluation.world import colour_shards, knowing_model, modalities
from tests.programs import start

BOTH = ["picture", "words"]
SAMPLES, BATCH = 13, 2


class StopError(RuntimeError):
    pass


class Stopping(nn.Module):
    """An encoder that stops at its n-th batch: by kill -9, or with an error; it counts its batches."""

    def __init__(self, encoder: nn.Module, at: int, kill: bool) -> None:
        super().__init__()
        self.encoder, self.at, self.kill, self.batches = encoder, at, kill, 0

    def hook(self, *_: object) -> None:
        self.batches += 1
        if self.batches == self.at:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise StopError


def embed(
    folder: str, out: str, at: int = 0, kill: bool = False, model_name: str | None = "a", **more: Any
) -> tuple[int, int]:
    """A piece a batch; the numbers of embedded batches and of rows."""
    model = knowing_model()
    stopping = Stopping(model.encoders["picture"], at, kill)
    model.encoders["picture"].register_forward_pre_hook(stopping.hook)
    source = {} if model_name is None else {"model": model_name}
    shards = [str(path) for path in sorted(Path(folder).glob("*.tar"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_SECONDS", 0.0)
        settings: dict[str, Any] = {"wanted": BOTH, "batch_size": BATCH, "source": source}
        rows = write_embeddings(model, modalities(), shards, Path(out), **settings | more)
    return stopping.batches, rows["words"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    colour_shards(folder, SAMPLES)
    return str(folder)


@pytest.fixture(scope="module")
def whole(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a call that was not stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert embed(shards, str(out))[0] == 7
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("at", [1, 4, 7])
def test_kill_9_loses_one_piece(shards: str, whole: dict[str, bytes], tmp_path: Path, at: int) -> None:
    killed = start(embed, shards, str(tmp_path), at, True)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert contents(tmp_path) == {}, "no file looks whole"
    assert embed(shards, str(tmp_path))[0] == 7 - (at - 1)
    assert contents(tmp_path) == whole
    assert not (tmp_path / ".unfinished").exists()


def test_a_finished_folder_is_left_as_it_is(
    shards: str, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another model, other rows, a cut file or `overwrite` embed again."""
    out = str(tmp_path)
    rows = embed(shards, out)[1]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert embed(shards, out) == (0, rows)
    assert caplog.messages[-1].startswith(f"{out} holds these embeddings already: nothing was embedded; to embed again")
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert embed(shards, out, overwrite=True) == (7, rows)
    with open(tmp_path / "picture.npy", "r+b") as file:
        file.truncate(200)
    for changes in ({}, {"model_name": "b"}, {}, {"half": True}, {"wanted": ["words", "picture"]}):
        assert embed(shards, out, **changes)[0] == 7, changes
        said = f"{out} holds embeddings of another model, data, settings or version: they are replaced"
        assert caplog.messages[-1] == said
    assert embed(shards, out, model_name=None)[0] == 7, "who does not say which model it is cannot be told from another"


def test_two_processes_leave_a_finished_folder(shards: str, two_processes: Processes, tmp_path: Path) -> None:
    given = (shards, str(tmp_path))
    rows = embed(*given)[1]
    assert two_processes.run(embed, [given, given]) == [(0, rows), (0, rows)]


def test_an_error_keeps_what_is_finished_and_two_processes_go_on(
    two_processes: Processes, shards: str, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="StopError"):
        embed(shards, str(tmp_path), at=4)
    assert contents(tmp_path) == {}
    given = (shards, str(tmp_path))
    batches = two_processes.run(embed, [given, given])
    assert sum(one[0] for one in batches) == 4
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("model_name", ["b", None])
def test_pieces_of_another_model_are_not_used(
    shards: str, tmp_path: Path, model_name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Exception, match="StopError"):
        embed(shards, str(tmp_path), at=4)
    assert embed(shards, str(tmp_path), model_name=model_name)[0] == 7
    assert "of another model, data or settings: removed" in caplog.text


def test_a_piece_that_was_cut_is_none(shards: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="StopError"):
        embed(shards, str(tmp_path), at=4)
    cut = sorted((tmp_path / ".unfinished").glob(".piece-*.words.rows"))[1]
    os.truncate(cut, cut.stat().st_size - 1)
    assert embed(shards, str(tmp_path))[0] == 5
    assert contents(tmp_path) == whole


def test_two_calls_in_one_folder_are_told(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(*given: object) -> object:
        return [piece for piece in finished_pieces(*given) for _ in range(2)]  # type: ignore[arg-type]

    monkeypatch.setattr(module, "finished_pieces", doubled)
    with pytest.raises(DataError, match="another call embeds into this folder at the same time"):
        embed(shards, str(tmp_path))


def test_a_row_that_is_not_finite_ends_the_work_and_keeps_the_rest(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_SECONDS", 0.0)
    model = knowing_model()
    seen: list[int] = []

    def spoil(module: nn.Module, given: object, features: object) -> None:
        seen.append(1)
        if len(seen) == 3:
            features.pooled[0] = torch.nan  # type: ignore[attr-defined]

    model.encoders["picture"].register_forward_hook(spoil)
    paths = [str(path) for path in sorted(Path(shards).glob("*.tar"))]
    with pytest.raises(NumericError, match="'sample004'"):
        write_embeddings(model, modalities(), paths, tmp_path, wanted=BOTH, batch_size=BATCH, source={"model": "a"})
    assert embed(shards, str(tmp_path))[0] == 5


def test_spans_and_shares_are_all_batches_once() -> None:
    class At:
        def __init__(self, start: int, stop: int) -> None:
            self.start, self.stop = start, stop

    pieces = [At(0, 2), At(5, 6), At(9, 10)]
    missing = missing_batches(pieces, 12)  # type: ignore[arg-type]
    assert missing == [range(2, 5), range(6, 9), range(10, 12)]
    assert missing_batches([], 3) == [range(3)]
    for world in (1, 2, 3, 5, 11):
        shares = [share_of(missing, rank, world) for rank in range(world)]
        assert [batch for share in shares for span in share for batch in span] == [2, 3, 4, 6, 7, 8, 10, 11]
        sizes = [sum(map(len, share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1
