"""The sections of the table for one loader: epoch, mixture, resume, kill and damage. Each returns plain JSON data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from loaders.adapter import LoaderAdapter
from loaders.damage import KINDS, Anatomy, damaged
from loaders.ranks import LoaderJob, LoaderRun, run
from loaders.samples import make_samples
from loaders.verdicts import Count, difference, epoch_count, harm, mixture_count, new_lines, resumed, same_order, share

LAYOUTS = [(world, workers) for world in (1, 2, 4) for workers in (0, 1, 2, 3)]
BATCH = 12
"""Global batch; all worlds divide it, and it divides the samples."""
SIZES, WEIGHTS, SHARDS = (240, 60), (2 / 3, 1 / 3), 12
"""Of the two sources: at these weights, 360 draws are one pass over the first and two over the second."""
FROM = (2, 2)
TO = {
    "the same layout": [(2, 2)],
    "other workers": [(2, 3), (2, 0)],
    "other ranks": [(1, 2), (4, 2), (4, 1)],
}
"""Layouts (ranks, workers of each) of the run that saves and of those that resume; (4, 1) has as many workers in all."""
SAVE_AT = {False: 8, True: 12}
"""Steps before the save, with one source and with two; the remaining steps divide evenly on all of these layouts."""
KILL_AT, SAVE_EVERY = 11, 4


class Scenarios:
    """Scenarios of one loader.

    Args:
        adapter: the loader.
        folder: for shards and records.
        sizes: samples of the two sources.
        layouts: (ranks, workers of each); the first is the one that the others are compared with.
        kinds: of damage.
        seconds: see `LoaderJob`; for one process on damaged shards, a fifth of it.
    """

    def __init__(
        self,
        adapter: LoaderAdapter,
        folder: Path,
        *,
        sizes: tuple[int, int] = SIZES,
        layouts: Sequence[tuple[int, int]] = LAYOUTS,
        kinds: Sequence[str] = tuple(KINDS),
        seconds: float = 100,
    ) -> None:
        self.adapter, self.folder, self.layouts, self.kinds, self.seconds = adapter, folder, layouts, kinds, seconds
        self.samples = [make_samples(source, size) for source, size in zip("ab", sizes, strict=True)]
        self.keys = [[sample.key for sample in samples] for samples in self.samples]
        self._numbers = count()
        self._wholes: dict[tuple[bool, tuple[int, int]], LoaderRun] = {}

    @cached_property
    def sources(self) -> tuple[Path, ...]:
        """A prepared folder for each source."""
        folders = tuple(self.folder / f"source{number}" for number in range(len(self.samples)))
        for folder, samples in zip(folders, self.samples, strict=True):
            folder.mkdir(parents=True)
            self.adapter.prepare(samples, folder, max(1, len(samples) // SHARDS))
        return folders

    def section(self, name: str) -> Any:
        """The facts of a section."""
        known: dict[str, Callable[[], Any]] = {
            "epoch": self.epoch,
            "mixture": self.mixture,
            "resume": self.resume,
            "kill": self.kill,
            "damage": self.damage,
        }
        return known[name]()

    def epoch(self) -> list[dict[str, Any]]:
        """One epoch of one source on each layout."""
        return [self._layout_facts(layout, mixed=False) for layout in self.layouts]

    def mixture(self) -> list[dict[str, Any]]:
        """360 draws of two sources, by weight, on each layout."""
        return [self._layout_facts(layout, mixed=True) for layout in self.layouts]

    def resume(self) -> list[dict[str, Any]]:
        """Save in the middle of an epoch, and resume on other layouts; from one source and from two."""
        facts = []
        for mixed in (False, True):
            step = SAVE_AT[mixed]
            part = self._run(FROM, mixed, steps=step, save_every=step)
            for change, layouts in TO.items():
                for layout in layouts:
                    facts.append({"mixed": mixed, "change": change, **self._resumed(part, step, layout, mixed)})
        return facts

    def kill(self) -> dict[str, Any]:
        """Kill all processes at a step with SIGKILL, and resume from the last saved position."""
        part = self._run(FROM, False, save_every=SAVE_EVERY, kill_at=KILL_AT)
        return {"at": KILL_AT, **self._resumed(part, KILL_AT // SAVE_EVERY * SAVE_EVERY, FROM, False)}

    def damage(self) -> dict[str, Any]:
        """Each kind of damage to one shard: what came, and what was said."""
        usual = self._run((1, 2), False)
        sound = {key: print_ for batch in usual.steps() for key, print_ in batch}
        return {kind: self._harm(kind, usual, sound) for kind in self.kinds}

    def _harm(self, kind: str, usual: LoaderRun, sound: dict[str, str]) -> dict[str, Any] | None:
        copy = self.folder / f"damaged{next(self._numbers)}"
        shutil.copytree(self.sources[0], copy)
        shards = self.adapter.shards(copy)
        path = shards[len(shards) // 2]
        data = damaged(Anatomy.of(path.read_bytes(), self.adapter.layout, self.samples[0]), kind)
        if data is None:
            return None
        path.write_bytes(data)
        done = self._run((1, 2), False, folders=(copy,), seconds=self.seconds / 5)
        told = [*done.ranks[0].reports, *new_lines(done.log, usual.log)]
        verdict = harm(done.steps(), sound, done.end, done.error, told)
        return asdict(verdict) | {"silent": verdict.silent}

    def _layout_facts(self, layout: tuple[int, int], mixed: bool) -> dict[str, Any]:
        done, first = self._whole(layout, mixed), self._whole(self.layouts[0], mixed)
        steps = done.steps()
        counted = mixture_count(steps, self.keys) if mixed else epoch_count(steps, self.keys[0])
        return {
            "world": layout[0],
            "workers": layout[1],
            "end": done.end,
            "error": done.error,
            **asdict(counted),
            "order": done.end in ("end", "steps") and same_order(steps, first.steps()),
            "even": len({len(rank.batches) for rank in done.ranks}) == 1,
            "share": share(steps, self.keys[0]),
        }

    def _resumed(self, part: LoaderRun, step: int, layout: tuple[int, int], mixed: bool) -> dict[str, Any]:
        facts: dict[str, Any] = {"to": layout}
        if part.end in ("no state", "error", "hangs"):
            return facts | asdict(resumed(part.end, part.error, Count(0, 0), False))
        rest = self._run(layout, mixed, steps=self._most(mixed) - step, resume=part.saved(step))
        before, after = part.steps()[:step], rest.steps()
        whole = self._whole(FROM, mixed).steps()
        changed = difference(whole, [*before, *after])
        return facts | asdict(resumed(rest.end, rest.error, changed, same_order(after, whole[step:])))

    def _whole(self, layout: tuple[int, int], mixed: bool) -> LoaderRun:
        """The uninterrupted run on a layout, made once."""
        if (mixed, layout) not in self._wholes:
            self._wholes[mixed, layout] = self._run(layout, mixed)
        return self._wholes[mixed, layout]

    def _draws(self, mixed: bool) -> int:
        return len(self.keys[0]) * 3 // 2 if mixed else len(self.keys[0])

    def _most(self, mixed: bool) -> int:
        """Steps after which a run stops. An epoch that ends by itself may take some more, if batches are smaller."""
        return self._draws(mixed) // BATCH * (1 if mixed or self.adapter.endless else 3)

    def _run(self, layout: tuple[int, int], mixed: bool, folders: tuple[Path, ...] = (), **options: Any) -> LoaderRun:
        job = LoaderJob(
            folders=folders or (self.sources if mixed else self.sources[:1]),
            weights=WEIGHTS if mixed else (1.0,),
            draws=self._draws(mixed),
            world=layout[0],
            workers=layout[1],
            batch=BATCH,
            again=mixed,
            **({"steps": self._most(mixed), "seconds": self.seconds} | options),
        )
        return run(self.adapter, job, self.folder / f"run{next(self._numbers)}")
