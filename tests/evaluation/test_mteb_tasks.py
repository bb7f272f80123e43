"""mteb's scores of a model are those of the house's evaluators, on the same samples: a task of each type that it is used for.

They need mteb: `python3 tools/peer_env.py --env referees python -m pytest -n 0 tests/evaluation/test_mteb_tasks.py`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import DataError, RecipeError
from mmssl.core.evaluator import Score
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modality import Modality
from mmssl.evaluation.mteb_tasks import TASK_FILES, MtebConfig, add_task_file
from mmssl.recipe.unions import EvaluatorUnion, members
from tests.evaluation.world import configured, model, write_shard

mteb = pytest.importorskip("mteb", reason="the extra `mteb` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of mteb and datasets
WIDTH, RATE, N = 16, 8000, 40
"""mteb rounds scores of retrieval to five digits, which shares of 40 and 80 have."""
COLOURS, THINGS = ("red", "green", "blue"), ("ball", "cube", "cone", "ring", "star")
CLASSES = ("red picture", "green picture", "blue picture")
TASKS = Path(__file__).with_name("mteb_local_tasks.py")


def caption(i: int, which: int = 0) -> str:
    return f"{COLOURS[i % 3]} {THINGS[i % 5]} number {i} {'seen again' if which else ''}".strip()


def picture(i: int) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(i).integers(0, 160, (8, 8, 3))
    pixels[:, :, i % 3] += 60
    return pixels.astype(np.uint8)


def sound(i: int) -> np.ndarray[Any, Any]:
    """Whole 16-bit steps, so that a WAV file has exactly these values."""
    return np.random.default_rng(i).integers(-9000, 9000, RATE // 4).astype(np.int16)


def several(i: int) -> list[int]:
    return [int(i % 3 == 0), int(i % 2 == 0), int(i % 6 in (1, 4, 5))]


def file_of(array: np.ndarray[Any, Any], how: str) -> bytes:
    file = io.BytesIO()
    if how == "png":
        Image.fromarray(array).save(file, "PNG")
    elif how == "wav":
        soundfile.write(file, array, RATE, format="WAV", subtype="PCM_16")
    else:
        np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples twice: as shards, and as what mteb_local_tasks.py reads."""
    made = tmp_path_factory.mktemp("mteb")
    for split, first in (("train", 100), ("test", 0)):
        write_shard(
            made / split / "0.tar",
            [
                (
                    f"{i:03d}",
                    {
                        "png": file_of(picture(i), "png"),
                        "wav": file_of(sound(i), "wav"),
                        "txt": f"{caption(i)}\n{caption(i, 1)}".encode(),
                        "cls": str(i % 3).encode(),
                        "npy": file_of(np.array(several(i)), "npy"),
                    },
                )
                for i in range(first, first + N)
            ],
        )
        np.savez(
            made / f"{split}.npz",
            pictures=np.stack([picture(i) for i in range(first, first + N)]),
            sounds=np.stack([sound(i) for i in range(first, first + N)]),
            captions=np.array([[caption(i), caption(i, 1)] for i in range(first, first + N)]),
            classes=np.array([i % 3 for i in range(first, first + N)]),
            several=np.array([several(i) for i in range(first, first + N)]),
            names=np.array(CLASSES),
        )
    return made


@pytest.fixture
def tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setenv("MTEB_LOCAL_SAMPLES", str(folder))
    monkeypatch.setattr("mmssl.evaluation.mteb_tasks.TASK_FILES", TASK_FILES.copy())
    return add_task_file(TASKS)


def modalities() -> dict[str, Modality]:
    made = {
        "image": configured(ImageConfig, size=8),
        "audio": configured(AudioConfig, extensions=["wav"], rate=RATE, seconds=0.25),
        "text": configured(TextConfig, captions="lines", tokenizer={"kind": "clip", "context_length": 12}),
        "label": configured(LabelConfig),
        "multi_label": configured(MultiLabelConfig),
    }
    return {name: config.build(name) for name, config in made.items()}


def random_rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_model() -> EmbeddingModel:
    """Random, and the same in every run; pictures of a class lie near each other."""
    tables = random_rows(0, 49408, WIDTH), random_rows(1, 192, WIDTH), random_rows(2, RATE // 2, WIDTH)
    return model(
        WIDTH,
        text=lambda x: tables[0][x].sum(1),
        image=lambda x: x.float().flatten(1) @ tables[1],
        audio=lambda x: x.float().flatten(1) @ tables[2],
    )


def of_mteb(task: str, to: EmbeddingModel | None = None) -> dict[str, Score]:
    with configured(MtebConfig, tasks=[task], batch_size=7).build(modalities()) as evaluator:
        return dict(evaluator.evaluate(to or random_model()))


def of_house(kind: str, folder: Path, **settings: Any) -> dict[str, Score]:
    of_kind = {member.model_fields["kind"].default: member for member in members(EvaluatorUnion)}
    config = configured(of_kind[kind], **{"shards": [str(folder / "test")], **settings})
    with config.build(modalities()) as evaluator:
        return dict(evaluator.evaluate(random_model()))


def equal(ours: Mapping[str, Score], theirs: Mapping[str, Score], names: Mapping[str, str]) -> None:
    for own, other in names.items():
        assert theirs[other] == pytest.approx(ours[own], abs=1e-6), (own, other)


def test_zero_shot(folder: Path, tasks: tuple[str, ...]) -> None:
    settings = {"modality": "image", "prompts": "text", "classnames": [*CLASSES], "templates": "plain"}
    ours, theirs = of_house("zero_shot", folder, **settings), of_mteb("LocalZeroShot")
    equal(ours, theirs, {"acc1": "LocalZeroShot", "mean_per_class_recall": "LocalZeroShot_recall"})
    equal(ours, theirs, {"macro_f1": "LocalZeroShot_f1"})
    assert 0 < float(ours["acc1"] or 0) < 1


@pytest.mark.parametrize(
    ("task", "pair"), [("T2I", ("text", "image")), ("I2T", ("image", "text")), ("A2I", ("audio", "image"))]
)
def test_retrieval_between_any_two(folder: Path, tasks: tuple[str, ...], task: str, pair: tuple[str, str]) -> None:
    ours = of_house("retrieval", folder, pair=[*pair], resamples=100)
    theirs = of_mteb(f"LocalRetrieval{task}")
    way, name = f"{pair[0]}_to_{pair[1]}_", f"LocalRetrieval{task}_"
    equal(ours, theirs, {f"{way}R@{k}": f"{name}hit_rate_at_{k}" for k in (1, 5, 10)})
    equal(ours, theirs, {f"{way}recall@{k}": f"{name}recall_at_{k}" for k in (1, 5, 10)})
    assert theirs[f"{name}map_at_10"] == pytest.approx(ours[f"{way}mAP@10"], abs=5.1e-6)
    assert 0 < float(ours[f"{way}R@10"] or 0) < 1


def test_classification_by_the_same_classifier(folder: Path, tasks: tuple[str, ...]) -> None:
    settings = {"train_shards": [str(folder / "train")], "modality": "image", "ks": [7]}
    ours, theirs = of_house("knn", folder, **settings), of_mteb("LocalClassification")
    equal(ours, theirs, {"acc1": "LocalClassification", "mean_per_class_recall": "LocalClassification_recall"})
    assert 1 / 3 < float(ours["acc1"] or 0) < 1


def test_compositionality(folder: Path, tasks: tuple[str, ...], tmp_path: Path) -> None:
    for i in range(N):
        (tmp_path / f"{i}.png").write_bytes(file_of(picture(i), "png"))
    swap = tmp_path / "swap.json"
    choices = [(caption(i), caption(i + 1, 1)) for i in range(N)]
    entries = [{"filename": f"{i}.png", "caption": a, "negative_caption": b} for i, (a, b) in enumerate(choices)]
    swap.write_text(json.dumps({str(i): entry for i, entry in enumerate(entries)}))
    lines = tmp_path / "examples.jsonl"
    pairs = [
        {"id": i, "image_0": f"{i}", "image_1": f"{i + 1}", "caption_0": caption(i), "caption_1": caption(i + 1)}
        for i in range(N - 1)
    ]
    lines.write_text("\n".join(json.dumps({**pair, "collapsed_tag": "all"}) for pair in pairs))
    files = {"shards": [], "batch_size": 8, "pair": ["image", "text"], "pictures": str(tmp_path), "resamples": 100}
    ours, theirs = of_house("caption_choice", folder, files=[str(swap)], **files), of_mteb("LocalSwap")
    equal(ours, theirs, {"acc": "LocalSwap"})
    ours, theirs = of_house("caption_choice", folder, files=[str(lines)], **files), of_mteb("LocalPairs")
    equal(ours, theirs, {"text_score": "LocalPairs_text_acc", "image_score": "LocalPairs_image_acc"})
    equal(ours, theirs, {"group_score": "LocalPairs_accuracy"})


def views(split: str, folder: Path) -> Tensor:
    with np.load(folder / f"{split}.npz") as found:
        image = modalities()["image"]
        return torch.stack(
            [image.view("eval")(image.from_input(Image.fromarray(one)), {}) for one in found["pictures"]]
        )


def test_multi_label_is_the_classifier_on_our_embeddings(folder: Path, tasks: tuple[str, ...]) -> None:
    """mteb fits kNN on several labels, which the house does not: the slow form, by sklearn."""
    from sklearn.metrics import f1_score
    from sklearn.neighbors import KNeighborsClassifier

    train, test = (random_model().embed("image", views(split, folder)).detach().numpy() for split in ("train", "test"))
    labels = {split: np.load(folder / f"{split}.npz")["several"] for split in ("train", "test")}
    fitted = KNeighborsClassifier(n_neighbors=5).fit(train, labels["train"])
    theirs = of_mteb("LocalMultiLabel")
    assert theirs["LocalMultiLabel_accuracy"] == pytest.approx(fitted.score(test, labels["test"]), abs=1e-6)
    f1 = f1_score(labels["test"], fitted.predict(test), average="macro")
    assert theirs["LocalMultiLabel_f1"] == pytest.approx(f1, abs=1e-6)


def test_clustering_of_separate_classes_and_of_a_collapsed_model(tasks: tuple[str, ...]) -> None:
    """Known answers: classes far apart are found, equal embeddings say nothing."""

    def channels(x: Tensor) -> Tensor:
        means = x.float().mean((2, 3))
        return torch.nn.functional.one_hot(means.argmax(1), 3).float()

    assert of_mteb("LocalClustering", model(3, image=channels))["LocalClustering"] == pytest.approx(1.0, abs=1e-6)
    collapsed = model(3, image=lambda x: torch.ones(len(x), 3))
    assert of_mteb("LocalClustering", collapsed)["LocalClustering"] == pytest.approx(0.0, abs=1e-6)


def test_what_a_model_cannot_do_is_said(tasks: tuple[str, ...]) -> None:
    blind = model(WIDTH, text=lambda x: random_rows(0, 49408, WIDTH)[x].sum(1))
    with pytest.raises(RecipeError, match=r"LocalZeroShot needs image; this model has text, "):
        of_mteb("LocalZeroShot", blind)
    with pytest.raises(RecipeError, match="mteb has no task and no benchmark 'STS112'"):
        of_mteb("STS112")
    with pytest.raises(DataError, match="LocalBroken failed: ValueError: no such file"):
        of_mteb("LocalBroken")


def test_a_table_has_each_split_and_metric(tasks: tuple[str, ...]) -> None:
    with configured(MtebConfig, tasks=["LocalZeroShot"]).build(modalities()) as evaluator:
        evaluator.open()
        assert {"data", "mteb"} == set(evaluator.facts())
        scores = dict(evaluator.evaluate(random_model()))
    table = evaluator.tables["mteb"].columns
    assert evaluator.headlines == ("LocalZeroShot",)
    found = dict(zip(table["metric"], table["value"], strict=True))
    assert found["accuracy"] == scores["LocalZeroShot_accuracy"] == scores["LocalZeroShot"]
    assert set(table["subset"]) == {"default"}
    assert set(table["split"]) == {"test"}
