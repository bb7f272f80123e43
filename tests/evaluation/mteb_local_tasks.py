"""Tasks of mteb on the samples of test_mteb_tasks.py, as a user writes them for `mmssl evaluate RUN --mteb FILE.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.abstasks.multilabel_classification import AbsTaskMultilabelClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

RATE = 8000


def metadata(name: str, kind: Any, category: Any, modalities: list[Any], main: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="of a test",
        type=kind,
        category=category,
        modalities=modalities,
        main_score=main,
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        eval_splits=["test"],
    )


def samples(split: str) -> dict[str, Any]:
    with np.load(Path(os.environ["MTEB_LOCAL_SAMPLES"]) / f"{split}.npz") as found:
        return dict(found)


def pictures(split: str = "test") -> list[Image.Image]:
    return [Image.fromarray(one) for one in samples(split)["pictures"]]


def splits(column: str, label: str = "label") -> DatasetDict:
    made = {
        split: Dataset.from_dict({"image": pictures(split), label: samples(split)[column].tolist()})
        for split in ("train", "test")
    }
    return DatasetDict(made)


class ZeroShot(AbsTaskZeroShotClassification):
    metadata = metadata("LocalZeroShot", "ZeroShotClassification", "i2t", ["image", "text"], "accuracy")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        self.dataset, self.data_loaded = splits("classes"), True

    def get_candidate_labels(self) -> list[str]:
        return samples("test")["names"].tolist()


class Broken(ZeroShot):
    metadata = metadata("LocalBroken", "ZeroShotClassification", "i2t", ["image", "text"], "accuracy")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        raise ValueError("no such file")


class Classification(AbsTaskClassification):
    """All training samples, 13 or 14 a class, by the vote of the 7 nearest, as DINO weighs it."""

    metadata = metadata("LocalClassification", "ImageClassification", "i2c", ["image"], "accuracy")
    input_column_name, samples_per_label, n_experiments = "image", 14, 1
    evaluator_model = KNeighborsClassifier(7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        self.dataset, self.data_loaded = splits("classes"), True


class MultiLabel(AbsTaskMultilabelClassification):
    """All training samples: no label has more than 40."""

    metadata = metadata("LocalMultiLabel", "MultilabelClassification", "i2c", ["image"], "accuracy")
    input_column_name, samples_per_label, n_experiments = "image", 40, 1

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        found = splits("several")
        self.dataset = found.map(lambda row: {"label": [i for i, there in enumerate(row["label"]) if there]})
        self.data_loaded = True


class Clustering(AbsTaskClustering):
    metadata = metadata("LocalClustering", "ImageClustering", "i2i", ["image"], "v_measure")
    input_column_name, label_column_name = "image", "label"
    max_fraction_of_documents_to_embed = None

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        self.dataset, self.data_loaded = splits("classes"), True


class Retrieval(AbsTaskRetrieval):
    """Queries and corpus of any two modalities; a sample has two captions."""

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        queries, corpus = (self.rows(name) for name in self.sides)
        right = {q: {c: 1 for c in corpus["id"] if c[1:4] == q[1:4]} for q in queries["id"]}
        data = RetrievalSplitData(
            queries=Dataset.from_dict(queries),
            corpus=Dataset.from_dict(corpus),
            relevant_docs=right,
            top_ranked=None,
        )
        self.dataset, self.data_loaded = {"default": {"test": data}}, True

    @staticmethod
    def rows(name: str) -> dict[str, list[Any]]:
        found = samples("test")
        if name == "text":
            lines = [line for lines in found["captions"].tolist() for line in lines]
            return {"id": [f"t{i // 2:03d}-{i % 2}" for i in range(len(lines))], "text": lines}
        ids = [f"{name[0]}{i:03d}" for i in range(len(found["classes"]))]
        if name == "image":
            return {"id": ids, "image": pictures()}
        sounds = [{"array": (one / 32768).tolist(), "sampling_rate": RATE} for one in found["sounds"]]
        return {"id": ids, "audio": sounds}


class TextToImage(Retrieval):
    metadata = metadata("LocalRetrievalT2I", "Any2AnyRetrieval", "t2i", ["text", "image"], "hit_rate_at_5")
    sides = ("text", "image")


class ImageToText(Retrieval):
    metadata = metadata("LocalRetrievalI2T", "Any2AnyRetrieval", "i2t", ["text", "image"], "hit_rate_at_5")
    sides = ("image", "text")


class AudioToImage(Retrieval):
    metadata = metadata("LocalRetrievalA2I", "Any2AnyRetrieval", "a2i", ["audio", "image"], "hit_rate_at_5")
    sides = ("audio", "image")


class Swap(AbsTaskImageTextPairClassification):
    """One picture, a true and a false caption, as in SugarCrepe."""

    metadata = metadata("LocalSwap", "Compositionality", "i2t", ["image", "text"], "text_acc")
    images_column_names, texts_column_names = "image", ("caption", "false")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        names, things = ("red", "green", "blue"), ("ball", "cube", "cone", "ring", "star")
        true = [one[0] for one in samples("test")["captions"].tolist()]
        false = [f"{names[(i + 1) % 3]} {things[(i + 1) % 5]} number {i + 1} seen again" for i in range(len(true))]
        made = Dataset.from_dict({"image": pictures(), "caption": true, "false": false})
        self.dataset, self.data_loaded = DatasetDict({"test": made}), True


class Pairs(AbsTaskImageTextPairClassification):
    """Two pictures and their captions, as in Winoground."""

    metadata = metadata("LocalPairs", "Compositionality", "i2t", ["image", "text"], "text_acc")
    images_column_names, texts_column_names = ("image0", "image1"), ("caption0", "caption1")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        shown, lines = pictures(), [one[0] for one in samples("test")["captions"].tolist()]
        columns = {"image0": shown[:-1], "image1": shown[1:], "caption0": lines[:-1], "caption1": lines[1:]}
        self.dataset, self.data_loaded = DatasetDict({"test": Dataset.from_dict(columns)}), True
