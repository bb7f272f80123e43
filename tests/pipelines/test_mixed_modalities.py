"""One run on shards with different modality sets: captioned pictures, captioned sounds, and scenes that have all three."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from mmssl.training.runtime.jsonl import JsonLines
from tests.data.make import Record, write
from tests.pipelines.conftest import RECIPE, World

KEEP = {"pictures": ("jpg", "txt"), "sounds": ("wav", "txt"), "scenes": ("jpg", "wav", "txt")}
OBJECTIVE = {
    "kind": "clip",
    "pairs": [
        ["image", "text"],
        {"modalities": ["audio", "text"], "loss": "sigmoid", "temperature": 0.1, "bias": -3},
        {"modalities": ["image", "audio"], "weight": 0.5},
    ],
    "views": {"image": "crop", "audio": "crop", "text": "tokens"},
    "embedding": 16,
    "temperature": 0.07,
    "duplicates": "ignore",
}
AUDIO = {
    "modality": {"kind": "audio", "rate": 8000, "seconds": 1.0, "channels": "mono", "views": {"crop": {"kind": "random_window"}}},
    "encoder": {
        "kind": "audio_transformer",
        "front_end": {"kind": "mel", "rate": 8000, "window": 256, "hop": 160, "mels": 32, "mean": -7.5, "std": 4.7},
        "seconds": 1.0, "patch_size": [16, 8], "width": 32, "depth": 1, "heads": 2,
    },
}  # fmt: skip


def split(shards: Path, target: Path) -> None:
    """Shards that hold the same scenes with fewer members: a third of pictures, a third of sounds, a third whole."""
    target.mkdir()
    records: dict[str, Record] = {}
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                records.setdefault(key, {"__key__": key})[extension] = content.read()
    for number, (name, extensions) in enumerate(KEEP.items()):
        rows = list(records.values())[number::3]
        write(target / f"{name}.tar", ({e: row[e] for e in ("__key__", *extensions)} for row in rows))


def test_shards_of_different_modalities_mix_in_one_run(world: World, tmp_path: Path) -> None:
    split(world.shards / "train", tmp_path / "mixed")
    recipe = RECIPE | {
        "name": "mixed",
        "output": str(tmp_path),
        "modalities": RECIPE["modalities"] | {"audio": AUDIO["modality"]},  # type: ignore[operator]
        "encoders": RECIPE["encoders"] | {"audio": AUDIO["encoder"]},  # type: ignore[operator]
        "objective": OBJECTIVE,
        "data": {"shards": [str(tmp_path / "mixed")], "workers": 0, "optional": ["image", "audio"]},
        "evaluators": {
            f"{first}_{second}": {"kind": "retrieval", "shards": [str(world.shards / "test")], "pair": [first, second]}
            for first, second in (("image", "text"), ("audio", "text"), ("image", "audio"))
        },
    }
    file = tmp_path / "mixed.yaml"
    file.write_text(json.dumps(recipe))
    assert world.pretrain(recipe=file) == 0
    assert world.pretrain("name=cached", "step.kind=cached", "step.micro_batches=4", "evaluators={}", recipe=file) == 0
    plain, cached = (
        [row for row in JsonLines(tmp_path / name / "metrics.jsonl").read() if "loss" in row]
        for name in ("mixed", "cached")
    )
    assert len(plain) == 3
    for row, other in zip(plain, cached, strict=True):
        samples = {pair: row[f"{pair}/samples"] for pair in ("image-text", "audio-text", "image-audio")}
        assert all(0 < count < 16 for count in samples.values())
        # Each sample of the batch lacks one of image and audio, or none.
        assert samples["image-text"] + samples["audio-text"] - samples["image-audio"] == 16
        assert abs(row["loss"] - other["loss"]) < 1e-3 * row["loss"]
    written = (tmp_path / "mixed/recipe.yaml").read_text()
    assert "shared_temperature: false" in written
