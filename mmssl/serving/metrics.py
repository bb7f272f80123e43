"""Counters and histograms of a server, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """Observations of several label values, in buckets with upper bounds (inclusive)."""

    def __init__(self, name: str, what: str, label: str, bounds: Sequence[float]) -> None:
        self.name, self.what, self.label, self.bounds = name, what, label, tuple(bounds)
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        self._lock = threading.Lock()

    def observe(self, of: str, value: float) -> None:
        """Add an observation."""
        with self._lock:
            counts = self._counts.setdefault(of, [0] * (len(self.bounds) + 1))
            counts[bisect_left(self.bounds, value)] += 1
            self._sums[of] = self._sums.get(of, 0.0) + value

    def lines(self) -> Iterator[str]:
        """The text of this histogram."""
        yield from (f"# HELP {self.name} {self.what}", f"# TYPE {self.name} histogram")
        with self._lock:
            for of, counts in sorted(self._counts.items()):
                label, total = f'{self.label}="{_escaped(of)}"', 0
                for bound, count in zip([*map(str, self.bounds), "+Inf"], counts, strict=True):
                    total += count
                    yield f'{self.name}_bucket{{{label},le="{bound}"}} {total}'
                yield f"{self.name}_sum{{{label}}} {self._sums[of]!r}"
                yield f"{self.name}_count{{{label}}} {total}"


class Metrics:
    """What a server counts.

    Attributes:
        seconds: of requests by route. batches: inputs of forward passes, and forward: their seconds, by modality.
    """

    def __init__(self) -> None:
        self.seconds = Histogram("mmssl_request_seconds", "Seconds from request to answer.", "route", SECONDS)
        self.batches = Histogram("mmssl_batch_inputs", "Inputs of one forward pass.", "modality", SIZES)
        self.forward = Histogram("mmssl_forward_seconds", "Seconds of one forward pass.", "modality", SECONDS)
        self._answers: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        with self._lock:
            self._answers[route, status] = self._answers.get((route, status), 0) + 1
        self.seconds.observe(route, seconds)

    def text(self, running: int, waiting: int) -> str:
        """All metrics.

        Args:
            running: requests that are worked on now.
            waiting: inputs that wait for a forward pass.
        """
        name = "mmssl_requests_total"
        lines = [f"# HELP {name} Answers by route and status.", f"# TYPE {name} counter"]
        with self._lock:
            lines += [
                f'{name}{{route="{_escaped(route)}",status="{status}"}} {count}'
                for (route, status), count in sorted(self._answers.items())
            ]
        for gauge, what, value in (
            ("mmssl_requests_running", "Requests that are worked on.", running),
            ("mmssl_inputs_waiting", "Inputs that wait for a forward pass.", waiting),
        ):
            lines += [f"# HELP {gauge} {what}", f"# TYPE {gauge} gauge", f"{gauge} {value}"]
        for histogram in (self.seconds, self.batches, self.forward):
            lines += histogram.lines()
        return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
