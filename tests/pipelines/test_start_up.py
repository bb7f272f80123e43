"""Commands that make no tensor answer at once, and in little memory: they do not import torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.curation.test_pack import picture

SLOW = ("torch", "transformers", "open_clip", "accelerate", "scipy", "sklearn", "webdataset")
PROGRAM = """
import json, sys
from pipelines import cli, command
commands, slow = json.loads(sys.argv[1])
found = []
for words in commands:
    code = command.guarded(cli.full(), words)
    found.append([code, [name for name in slow if name in sys.modules]])
print(json.dumps(found))
"""


def test_shards_verbs_do_not_import_torch(tmp_path: Path) -> None:
    for number in range(4):
        file = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    (tmp_path / "t.csv").write_text("photo,title\nphotos/cat/0.jpg,a cat\n")
    photos, table, out, none = (str(tmp_path / name) for name in ("photos", "t.csv", "out", "none"))
    commands = {
        ("--help",): 0,
        ("shards", "pack", photos, out): 0,  # with captions, which the verbs below count in CLIP's tokens
        ("shards", "pack", table, none, "--column", "image=photo", "--column", "caption=title"): 0,
        ("shards", "pack", table, none, "--column", "image=picture"): 3,
        ("shards", "pack", table, none, "--column", "picture=photo"): 2,
        ("shards", "pack", photos, none, "--format", "nothing"): 3,
        ("shards", "index", out): 0,
        ("shards", "index", out, "--check"): 0,
        ("shards", "index", none + "x"): 3,
        ("shards", "filter", out, "--out", none + "y", "--duplicates", "perceptual", "--min-side", "2"): 0,
        ("shards", "filter", out, "--out", none + "z", "--where", "width"): 2,
        ("shards", "check", out): 0,
        ("shards", "stats", out): 0,
    }
    given = json.dumps([list(map(list, commands)), SLOW])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [code for code, _ in found] == list(commands.values())
    first = next(((words, slow) for words, (_, slow) in zip(commands, found, strict=True) if slow), None)
    assert first is None, "tests/test_architecture.py names the module"
