"""Embeddings on disk: rows, owners, keys; the same from one process and from two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError
from mmssl.data import digit_scenes
from mmssl.data.audio import AudioConfig
from mmssl.data.decode import iterate
from mmssl.data.index import ShardIndex
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.spectrogram import MelConfig
from mmssl.evaluation.embed import write_embeddings
from tests.distributed.processes import Processes
from tests.evaluation.world import colour_shards, knowing_model, modalities, write_shard

BOTH = ["picture", "words"]


def embed(shards: list[str], out: str, half: bool = False) -> dict[str, int]:
    return write_embeddings(knowing_model(), modalities(), shards, Path(out), wanted=BOTH, half=half, batch_size=2)


@pytest.mark.parametrize("n", [7, 1])
def test_two_processes_write_what_one_writes(two_processes: Processes, tmp_path: Path, n: int) -> None:
    shards = colour_shards(tmp_path / "shards", n)
    captions = sum(1 + i % 3 for i in range(n))
    assert embed(shards, str(tmp_path / "one")) == {"picture": n, "words": captions}
    given = (shards, str(tmp_path / "two"))
    assert two_processes.run(embed, [given, given]) == [{"picture": n, "words": captions}] * 2
    for name in ("picture.npy", "picture.samples.npy", "words.npy", "words.samples.npy", "keys.txt"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


def test_rows_belong_to_their_samples(tmp_path: Path) -> None:
    embed(colour_shards(tmp_path / "shards", 7), str(tmp_path), half=True)
    rows, owners = np.load(tmp_path / "words.npy"), np.load(tmp_path / "words.samples.npy")
    assert rows.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=1e-3)
    assert owners.tolist() == [i for i in range(7) for _ in range(1 + i % 3)]
    assert (tmp_path / "keys.txt").read_text().splitlines()[3] == "sample003"
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == {"picture": 7, "words": len(rows)}


def test_what_cannot_be_embedded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no encoder for 'sound'"):
        write_embeddings(knowing_model(), modalities(), colour_shards(tmp_path, 2), tmp_path, wanted=["sound"])
    empty = [str(write_shard(tmp_path / "x.tar", [("a", {"json": b"{}"})]))]
    with pytest.raises(DataError, match="no sample"):
        embed(empty, str(tmp_path / "out"))


def test_a_long_sound_is_one_row_however_many_windows(tmp_path: Path) -> None:
    digit_scenes.write(tmp_path / "scenes", train=5, validation=0, test=0, shards=1, size=16)
    shards = [str(tmp_path / "scenes/train")]
    front_end = MelConfig(rate=8000, window=256, hop=80, mels=32, mean=-8.0, std=4.0)
    encoder = AudioTransformerConfig(
        front_end=front_end, seconds=0.2, patch_size=(8, 5), width=16, depth=1, heads=2
    ).build()
    model = EmbeddingModel({"audio": encoder}, {})
    rows = []
    for windows in (1, 4):
        modality = AudioConfig(rate=8000, seconds=0.2, eval_windows=windows).build("audio")
        out = tmp_path / str(windows)
        counts = write_embeddings(
            model, {"audio": modality}, shards, out, wanted=["audio"], features=True, batch_size=2
        )
        assert counts == {"audio": 5}
        rows.append(torch.from_numpy(np.load(out / "audio.npy")))
    assert not torch.allclose(rows[0], rows[1], atol=1e-2)
    samples = iterate(ShardIndex.open(shards), {"audio": modality})
    made = torch.stack([modality.views["eval"](sample.values["audio"], {}) for sample in samples])
    with torch.no_grad():
        wanted = encoder.eval()(made.flatten(0, 1)).pooled.unflatten(0, (5, 4)).mean(1)
    torch.testing.assert_close(rows[1], wanted, atol=1e-5, rtol=1e-5)
