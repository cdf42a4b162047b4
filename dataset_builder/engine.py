"""One machine: bundles stream through the stages of a phase on a few threads, each is journalled when it is done, and memory is bounded."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from tqdm import tqdm

from videosafety.dataset_builder.config import Config
from videosafety.dataset_builder.journal import Journal
from videosafety.dataset_builder.rows import Bundle, Stage, through
from videosafety.dataset_builder.servers import Ask

# Stage -> the function that makes it of a config (and of what it asks through), imported where it runs: a worker that cuts videos needs
# none of what the others need, and workers are started often.
STAGES = {
    "inspect": "shots.inspect",
    "shots": "shots.shots",
    "filter": "filter.measure",
    "label": "label.label",
    "describe": "label.describe",
    "spans": "spans.spans",
    "queries": "queries.queries",
    "translate": "translate.translate",
    "training": "training_rows.training",
}
SILENT = ("inspect", "shots", "filter")  # they ask nobody
AHEAD = 2  # bundles handed out for each thread
CHUNK = 256  # bundles whose keys are looked up at once


@dataclass(frozen=True, slots=True)
class Phase:
    """Stages that need nothing but their row. `key` names the phase and all that its outcome depends on.

    width: how many bundles each worker has in work: more than one where it mostly waits for servers.
    gpu: the stages that hold a model; beyond one machine they run in actors that keep it.
    """

    name: str
    key: str
    stages: Sequence[str]
    unit: str
    width: int = 1
    gpu: frozenset[str] = frozenset()


def make_stage(name: str, config: Config, ask: Ask) -> Stage:
    """A stage of STAGES, ready to be called. Raises ConfigError where it needs something that is not there."""
    module, _, function = STAGES[name].partition(".")
    make: Any = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    return make(config) if name in SILENT else make(config, ask)


class Engine(Protocol):
    """What runs a phase over bundles. Their keys are unique. After `run` every bundle is in the journal."""

    def run(self, phase: Phase, bundles: Iterable[Bundle], total: int | None = None) -> None: ...


def undone(journal: Journal, phase: Phase, bundles: Iterable[Bundle]) -> Iterator[tuple[Bundle, bool]]:
    """Every bundle, and whether it is still to be done."""
    rest = iter(bundles)
    while chunk := list(islice(rest, CHUNK)):
        done = journal.final(phase.key, [bundle.key for bundle in chunk])
        yield from ((bundle, bundle.key not in done) for bundle in chunk)


class LocalEngine:
    """Threads of this process. Decoding and encoding release the interpreter, and servers are waited for."""

    def __init__(self, config: Config, journal: Journal, ask: Ask, workers: int, quiet: bool = False) -> None:
        self._config, self._journal, self._ask, self._workers, self._quiet = config, journal, ask, workers, quiet

    def run(self, phase: Phase, bundles: Iterable[Bundle], total: int | None = None) -> None:
        """Do what is not done. Whatever the process dies of, what is in the journal is not done again."""
        stages = [(name, make_stage(name, self._config, self._ask)) for name in phase.stages]

        def work(bundle: Bundle) -> None:
            for name, stage in stages:
                bundle = through(bundle, name, stage)
            self._journal.put(phase.key, [bundle])

        waiting: deque[Future[None]] = deque()
        with (
            tqdm(total=total, desc=phase.name, unit=phase.unit, disable=self._quiet) as bar,
            ThreadPoolExecutor(self._workers * phase.width, thread_name_prefix="videosafety-build") as pool,
        ):

            def finish_one() -> None:
                waiting.popleft().result()
                bar.update()

            try:
                for bundle, to_do in undone(self._journal, phase, bundles):
                    if not to_do:
                        bar.update()
                        continue
                    waiting.append(pool.submit(work, bundle))
                    while waiting and (waiting[0].done() or len(waiting) >= AHEAD * self._workers * phase.width):
                        finish_one()
                while waiting:
                    finish_one()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
