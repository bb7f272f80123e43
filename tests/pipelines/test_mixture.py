"""A recipe with several sources, one of them on the web: shares in the log, an audit, and a resume that continues both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmssl.data.stream.audit import count_uses, read_audit
from tests.data.servers import serve
from tests.pipelines.conftest import World


def test_a_run_over_two_sources(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = sorted((world.shards / "train").glob("*.tar"))
    validation = sorted((world.shards / "validation").glob("*.tar"))
    values = json.loads(world.recipe.read_text())
    with serve() as server:
        server.files |= {f"/v/{path.name}": path.read_bytes() for path in validation}
        values |= {
            "output": str(tmp_path),
            "evaluators": {},
            "name": "mixed",
            "save": {"every": "2 steps", "keep_last": 3},
        }
        values["data"] = {
            "sources": {
                "near": {"shards": [str(path) for path in train], "weight": 3.0},
                "far": {"shards": [f"{server.url}/v/{path.name}" for path in validation], "weight": 1.0},
            },
            "workers": 0,
            "audit": "audit",
            "cache": {"folder": str(tmp_path / "cache")},
        }
        recipe = tmp_path / "mixed.yaml"
        recipe.write_text(json.dumps(values, indent=1))
        assert world.pretrain(recipe=recipe) == 0
        records = [json.loads(line) for line in (tmp_path / "mixed/metrics.jsonl").read_text().splitlines()]
        audit = list(read_audit(tmp_path / "mixed/audit"))
        assert [record["step"] for record in audit] == list(range(6))
        assert set(count_uses(audit).values()) == {1}
        for record in records:  # what is logged is what was used
            used = [number for line in audit[: record["step"]] for number in line["samples"]]
            far = sum(number >= 64 for number in used)
            assert record["share/far"] == far / len(used)
            assert record["passes/far"] == far / 16
            assert record["share/near"] == 1 - far / len(used)
        assert 16 <= far <= 32  # 24 of 96, and whole blocks of 64 places are exact
        assert "samples drawn" in capsys.readouterr().err
        assert world.mmssl("pretrain", recipe, "--dry-run") == 0
        assert list(read_audit(tmp_path / "mixed/audit")) == audit, "trying out a recipe touches no audit"
        assert world.pretrain("duration=8 steps", "data.sources.far.weight=2.0", recipe=recipe) == 4
        server.files |= {f"/moved/{path.name}": path.read_bytes() for path in validation}
        moved = json.dumps([f"{server.url}/moved/{path.name}" for path in validation])
        assert world.pretrain("duration=8 steps", f"data.sources.far.shards={moved}", recipe=recipe) == 0
    longer = list(read_audit(tmp_path / "mixed/audit"))
    assert longer[:6] == audit
    assert set(count_uses(longer).values()) == {1}
    assert len(longer) == 8
