"""Beyond one machine: the same stages under Ray Data, which schedules, retries and holds models in actors; nothing of that is made here.

The work folder must lie where every node sees it under the same path. Servers are asked by one actor beside the journal, so that limits
hold for the whole cluster, and an answer outlives the worker that asked for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import ray
import ray.data
from tqdm import tqdm

from videosafety.dataset_builder.config import Config
from videosafety.dataset_builder.engine import Phase, make_stage, undone
from videosafety.dataset_builder.journal import Journal
from videosafety.dataset_builder.rows import Bundle, Stage, through
from videosafety.dataset_builder.servers import Answer, Asker, Messages, answer_of

BLOCKS, MOST = 32, 256  # blocks for each worker, so that none waits long for the last; bundles of one block at most, which a death costs
_SCHEMA = pyarrow.schema([("bundle", pyarrow.string())])


class _Servers:
    """The actor that asks. It is started anew where it dies, and finds its answers in the journal."""

    def __init__(self, config: Config, journal: str) -> None:
        self._asker = Asker(config.servers, Journal(Path(journal)))

    def outcome(self, server: str, messages: Messages, parameters: dict[str, Any]) -> tuple[str, str]:
        return self._asker.outcome(server, messages, parameters)


class _AskActor:
    """What stages ask through in a worker."""

    def __init__(self, config: Config, actor: Any) -> None:
        self._servers, self._actor = config.servers, actor

    def __call__(self, server: str, messages: Messages, parameters: dict[str, Any]) -> Answer:
        return answer_of(self._servers[server], server, *ray.get(self._actor.outcome.remote(server, messages, parameters)))


_STAGES: dict[tuple[str, str], Stage] = {}  # of this worker: made once, and kept by Ray's reuse of processes


def _read(batch: pyarrow.Table) -> pyarrow.Table:
    """The bundles of a block, from its file. Ray's own reader starts five processes to look at footers, for each phase."""
    return pyarrow.parquet.read_table(batch["file"][0].as_py())


def _run(batch: pyarrow.Table, name: str, key: str, width: int, config: Config, actor: Any) -> pyarrow.Table:
    """One stage over the bundles of a block, `width` at once."""
    if (name, key) not in _STAGES:
        _STAGES[name, key] = make_stage(name, config, _AskActor(config, actor))
    stage = _STAGES[name, key]
    with ThreadPoolExecutor(width) as pool:
        done = list(pool.map(lambda text: through(Bundle.loads(text), name, stage).dumps(), batch["bundle"].to_pylist()))
    return pyarrow.table({"bundle": done}, schema=_SCHEMA)


class _Model:
    """A stage that holds a model, in an actor that keeps it."""

    def __init__(self, *told: Any) -> None:
        self._told = told

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        return _run(batch, *self._told)


class RayEngine:
    """Ray Data on this machine, or on the cluster that RAY_ADDRESS names; started with the context and ended with it."""

    def __init__(self, config: Config, journal: Journal, workers: int, quiet: bool = False) -> None:
        self._config, self._journal, self._workers, self._quiet = config, journal, workers, quiet
        self._servers: Any = None
        self._ours = False

    def __enter__(self) -> RayEngine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # plans and timings, in the middle of our progress bars
        if not ray.is_initialized():
            local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": self._workers, "include_dashboard": False}
            ray.init(log_to_driver=False, configure_logging=False, **local)
            self._ours = True
        ray.data.DataContext.get_current().enable_progress_bars = False
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        settings = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 256, "scheduling_strategy": here}
        self._servers = ray.remote(_Servers).options(**settings).remote(self._config, str(self._config.work / "journal.sqlite"))
        return self

    def __exit__(self, *_: object) -> None:
        ray.kill(self._servers)
        if self._ours:
            ray.shutdown()

    def run(self, phase: Phase, bundles: Iterable[Bundle], total: int | None = None) -> None:
        """Do what is not done. Blocks whose worker dies are done again by Ray; what came back is in the journal."""
        todo = self._config.work / "todo"
        for old in todo.glob("*.parquet"):
            old.unlink()
        with tqdm(total=total, desc=phase.name, unit=phase.unit, disable=self._quiet) as bar:
            files = self._write(todo, undone(self._journal, phase, bundles), bar, total or 0)
            if not files:
                return
            tasks = ray.data.TaskPoolStrategy(size=self._workers)
            data: Any = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
            data = data.map_batches(_read, batch_format="pyarrow", batch_size=None, compute=tasks)
            for name in phase.stages:
                told = (name, phase.key, phase.width, self._config, self._servers)
                if name in phase.gpu:
                    gpus = 1 if ray.cluster_resources().get("GPU") else 0
                    data = data.map_batches(
                        _Model,
                        fn_constructor_args=told,
                        batch_format="pyarrow",
                        batch_size=None,
                        num_gpus=gpus,
                        compute=ray.data.ActorPoolStrategy(size=1),
                    )
                else:
                    data = data.map_batches(_run, fn_args=told, batch_format="pyarrow", batch_size=None, compute=tasks)
            for batch in data.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
                texts = batch["bundle"].to_pylist()
                self._journal.put(phase.key, map(Bundle.loads, texts))
                bar.update(len(texts))

    def _write(self, folder: Path, bundles: Iterable[tuple[Bundle, bool]], bar: tqdm, total: int) -> list[str]:
        """What is to be done as files of one block each: Ray reads them on whatever node it likes."""
        folder.mkdir(parents=True, exist_ok=True)
        block = max(1, min(MOST, total // (BLOCKS * self._workers)))
        todo = (bundle.dumps() for bundle, to_do in bundles if to_do or bar.update() is not None)
        files: list[str] = []
        while texts := list(islice(todo, block)):
            files.append(str(folder / f"{len(files):06d}.parquet"))
            pyarrow.parquet.write_table(pyarrow.table({"bundle": texts}, schema=_SCHEMA), files[-1])
        return files
