"""The evaluator protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

from torch import Tensor

from mmssl.core.encoder import EmbeddingModel
from mmssl.core.errors import MmsslError

Score = float | int | str | None


@dataclass(frozen=True)
class Table:
    """Rows beside the scores of an evaluator, such as one a sample, as a paper's table or a test needs them.

    Attributes:
        columns: name -> values, equally many; the column "key" names the sample, "class" its class.
        outcomes: columns of numbers that tell how well the model did in each row; models are compared by them, row by row. Their
            mean is the score of that name, with the name of the table before it unless that is "samples".
        texts: reads further columns, such as captions; called only where the table is written into a file, and on one process.
            None: there are none.
        measures: scores that are no means of rows, such as mAP: name -> function from how often each row counts [n, R] float32, on
            the CPU, to the score in each of R draws [R]; where each row counts once, it is the score of that name.
        influences: scores that are no means of rows, and how much they owe to each row, such as AUROC: name -> score and [n]
            float64, on the CPU, with the sum 0; the sum of their squares estimates the score's variance.
        vectors: further columns of one vector a row, [n, K]; in files lists of K.
    """

    columns: Mapping[str, Sequence[Score]]
    outcomes: tuple[str, ...] = ()
    texts: Callable[[], Mapping[str, Sequence[str]]] | None = None
    measures: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    influences: Mapping[str, tuple[float, Tensor]] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)


class Kept(Protocol):
    """Shards that an evaluator keeps open between its runs.

    Attributes:
        reads: shards (paths, braces or globs), and the modalities that are decoded of them, by name.
    """

    @property
    def reads(self) -> Sequence[tuple[Sequence[str], Mapping[str, Any]]]: ...

    def digest(self) -> str:
        """Hash of the names, sizes and keys of what is open: equal ones have the same samples in the same order."""
        ...

    def open(self) -> object:
        """Open them, unless they are open."""
        ...

    def close(self) -> None:
        """Close them, and end their worker processes; they can be opened again."""
        ...


class Evaluator(ABC):
    """Measures a model on evaluation shards, independently of how the model was trained.

    `evaluate` runs on every process, each on its share of the samples, and all processes yield the same scores: those of one
    process on all samples.

    Attributes:
        headlines: metrics shown on the console; files hold all. Empty: all are shown.
        kept: all shards that it reads.
        tables: rows of the latest run, by name: "samples", "classes", ...; the same on all processes.
        fitted: what the latest run fitted, such as the head of a probe; kept beside the scores as TASK.safetensors.
    """

    headlines: tuple[str, ...] = ()
    kept: Sequence[Kept] = ()
    tables: Mapping[str, Table] = MappingProxyType({})
    fitted: Mapping[str, Tensor] = MappingProxyType({})

    def facts(self) -> dict[str, Any]:
        """What decides the scores besides model and settings, for result files: the data, and the files that were read.

        Only while the shards are open.
        """
        return {"data": [one.digest() for one in self.kept]}

    @abstractmethod
    def evaluate(self, model: EmbeddingModel) -> Iterator[tuple[str, Score]]:
        """Yield (metric, value). A value that is not defined is None, never NaN.

        Raises:
            ValueError: the model lacks a modality or a shared space that this evaluator needs.
            DataError: the shards cannot be used. NumericError: an embedding is not finite (named by key).
        """

    def open(self) -> None:
        """Open the shards before a run or a training begins, so that what is wrong with them shows at once.

        Raises:
            DataError: they cannot be used. RecipeError: they do not fit the settings.
        """
        for one in self.kept:
            one.open()

    def close(self) -> None:
        """Close open shards and worker processes kept between runs; another run starts them again.

        Whoever builds an evaluator closes it, or uses it as a context manager.
        """
        for one in self.kept:
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def evaluation_error(failures: Mapping[str, MmsslError]) -> MmsslError:
    """Join the errors of failed evaluators into one, of the class (and exit code) of the first.

    Args:
        failures: name of an evaluator -> its error; at least one.
    """
    count = f"{len(failures)} evaluator{'s' if len(failures) > 1 else ''} failed; the scores of the others are complete"
    lines = [f"evaluators.{name}: {error}" for name, error in failures.items()]
    return next(iter(failures.values())).saying("\n  ".join([count, *lines]))
