"""Embeddings on disk: rows, owners, keys; the same from one process and from two."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, NumericError
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.samples import iterate
from mmssl.data.shards.index import ShardIndex
from mmssl.datasets import digit_scenes, moving_scenes
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.spectrogram import MelConfig
from mmssl.evaluation.embeddings.write import write_embeddings
from tests.distributed.processes import Processes
from tests.encoders.kinds import build
from tests.evaluation.world import (
    NAMES,
    colour_sample,
    colour_shards,
    configured,
    knowing_model,
    modalities,
    png,
    write_shard,
)

BOTH = ["picture", "words"]


def embed(shards: list[str], out: str, half: bool = False, required: bool = True) -> dict[str, int]:
    return write_embeddings(
        knowing_model(), modalities(), shards, Path(out), wanted=BOTH, required=required, half=half, batch_size=2
    )


def refusal(shards: list[str], out: str) -> str:
    with pytest.raises(DataError) as caught:
        embed(shards, out)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


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
    with pytest.raises(DataError, match=r"no sample .* has 'picture' or 'words': of 1, 0 cannot be decoded"):
        embed(empty, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def without_words(tmp_path: Path) -> list[str]:
    pictures = [(f"p{i}", {"png": png((9 * i, 99, 200))}) for i in range(5)]
    return [str(write_shard(tmp_path / "pictures.tar", pictures))]


def test_a_modality_that_no_sample_has_gets_no_file(two_processes: Processes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed(colour_shards(tmp_path / "shards", 4), str(out))
    before = contents(out)
    given = (without_words(tmp_path), str(out))
    assert (
        two_processes.run(refusal, [given, given])
        == [
            f"no sample of {given[0]} has 'words': of 5, 0 cannot be decoded; check the shards, and the modality's `extensions`; "
            "nothing was written"
        ]
        * 2
    )
    assert contents(out) == before, "an error leaves what was there"
    assert embed(*given, required=False) == {"picture": 5, "words": 0}
    table = {"samples.parquet"} if find_spec("pyarrow") else set()
    assert set(contents(out)) == {"picture.npy", "picture.samples.npy", "keys.txt", "manifest.json"} | table
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["rows"], manifest["without"]) == ({"picture": 5, "words": 0}, {"picture": 0, "words": 5})


def test_samples_without_a_modality_and_damaged_ones_are_counted(tmp_path: Path) -> None:
    samples = [colour_sample(i, 3) for i in range(6)]
    del samples[1][1]["txt"], samples[4][1]["txt"], samples[2][1]["png"]
    samples[5][1]["png"] = samples[5][1]["png"][:30]
    written = embed([str(write_shard(tmp_path / "a.tar", samples))], str(tmp_path / "out"))
    assert written == {"picture": 4, "words": 9}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (manifest["samples"], manifest["skipped"]) == (6, 1)
    assert manifest["without"] == {"picture": 1, "words": 2}


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".unfinished").mkdir(parents=True)
    (out / ".unfinished/.picture.values.7").write_bytes(b"of a process that was killed")
    embed(colour_shards(tmp_path / "good", 4), str(out))
    before = contents(out)
    assert ".unfinished" not in before
    model = knowing_model()
    last = modalities()["words"].tokenize([NAMES[6]])[0, 1]  # type: ignore[attr-defined]
    model.encoders["words"].table.data[last] = torch.nan
    for folder in (out, tmp_path / "new/deep"):
        with pytest.raises(NumericError, match="'sample006'"):
            write_embeddings(model, modalities(), colour_shards(tmp_path / "bad", 7), folder, wanted=BOTH, batch_size=2)
    assert contents(out) == before
    assert not (tmp_path / "new/deep").exists()


@pytest.mark.parametrize("modality", ["image", "text", "audio", "video"])
def test_rows_do_not_depend_on_their_batch(tmp_path: Path, modality: str) -> None:
    """From shards, with captions of several lengths, and samples that lack the modality between the others."""
    scenes = moving_scenes if modality == "video" else digit_scenes
    scenes.write(tmp_path / "scenes", train=5, validation=0, test=0, shards=1, size=32)
    made, name = {
        "image": (ImageConfig(size=32), "vit"),
        "text": (configured(TextConfig, tokenizer={"kind": "clip", "context_length": 32}), "text_transformer"),
        "audio": (AudioConfig(rate=8000, seconds=0.39, eval_windows=2), "audio_transformer"),
        "video": (VideoConfig(size=32, frames=4, seconds=1.0), "video_frames"),
    }[modality]
    encoder = build(name, tmp_path, **({"vocab_size": 49408, "context_length": 32} if modality == "text" else {}))
    torch.manual_seed(1)
    model = EmbeddingModel({modality: encoder}, {modality: nn.Linear(encoder.width, 16)})
    other = write_shard(tmp_path / "other.tar", [("other", {"json": b"{}"})])
    shards = [str(other), str(tmp_path / "scenes/train")]
    views = {modality: made.build(modality)}
    rows = {}
    for size in (1, 4, 64):
        out = tmp_path / f"{size}"
        write_embeddings(model, views, shards, out, wanted=[modality], batch_size=size)
        rows[size] = torch.from_numpy(np.load(out / f"{modality}.npy"))
        assert (
            np.load(out / f"{modality}.samples.npy").tolist()
            == np.load(tmp_path / "1" / f"{modality}.samples.npy").tolist()
        )
    assert len(rows[1]) >= 5
    assert (rows[1] - rows[1].mean(0)).abs().max() > 1e-3, "rows differ"
    for size in (4, 64):
        torch.testing.assert_close(rows[size], rows[1], atol=2e-6, rtol=0)


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
