"""The Ray engine: the same rows as on one machine, also where a worker is killed in the middle, and nothing asked twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_server import Model, model_server
from toy_clips import comparable, project, rows

from conftest import ROOT
from videosafety.dataset_builder.build import build
from videosafety.dataset_builder.config import load

pytestmark = pytest.mark.slow  # `make test-slow`

ray = pytest.importorskip("ray")
R1 = ROOT / "training_recipes" / "toy_world" / "checkpoints" / "r1"
LANGUAGES = {"server": "writer", "back": "judge", "targets": ["de"]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers on this machine, for all tests: Ray takes long to start."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], int]:
    """The rows of the local engine, and how many questions they took."""
    folder = tmp_path_factory.mktemp("local")
    with model_server() as model:
        build(load(project(folder, model.url, clips=6, translate=LANGUAGES)), quiet=True)
        return comparable(rows(folder / "out")), model.kinds.total()


def built(folder: Path, model: Model) -> list[dict[str, Any]]:
    build(load(project(folder, model.url, clips=6, translate=LANGUAGES)), "ray", 2, quiet=True)
    return comparable(rows(folder / "out"))


def test_two_workers_make_the_same_rows(cluster: None, tmp_path: Path, wanted: tuple[list[dict[str, Any]], int]) -> None:
    with model_server() as model:
        assert built(tmp_path, model) == wanted[0]
        assert model.kinds.total() == wanted[1]
        assert built(tmp_path, model) == wanted[0]
        assert model.kinds.total() == wanted[1], "what is done is not done again"


def test_a_model_is_held_by_an_actor_and_says_the_same(cluster: None, tmp_path: Path) -> None:
    found = []
    for engine in ("local", "ray"):
        with model_server() as model:
            file = project(tmp_path / engine, model.url, clips=4, spans={"model": str(R1), "window": 1.0})
            build(load(file), engine, 2, quiet=True)
            found.append(comparable(rows(tmp_path / engine / "out")))
    assert found[0] == found[1]
    said = {row["provenance"]["spans_by"] for row in found[0] if row["visual_label"]}
    assert {by.split(" (")[0] for by in said} <= {"alarm timeline of r1", "whole shot"}
    assert said


def workers() -> list[int]:
    """The processes that run tasks of a build, and not the actor that asks."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if title.startswith(b"ray::") and b"MapBatches(_run)" in title and ours(int(entry.name)):
                found.append(int(entry.name))
    return found


def ours(process: int) -> bool:
    """Whether a process descends from this one: other sessions may run Ray here too."""
    while process > 1 and process != os.getpid():
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return process == os.getpid()


def test_a_killed_worker_changes_nothing(cluster: None, tmp_path: Path, wanted: tuple[list[dict[str, Any]], int]) -> None:
    killed: list[int] = []
    with model_server(delay=0.2) as model:

        def kill_one() -> None:
            deadline = time.monotonic() + 240
            while not killed and time.monotonic() < deadline:
                for process in workers() if model.kinds["label"] >= 2 else []:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    break
                time.sleep(0.02)

        thread = threading.Thread(target=kill_one)
        thread.start()
        assert built(tmp_path, model) == wanted[0]
        thread.join()
        assert killed, "a worker must die in the middle for this test to mean anything"
        assert model.kinds.total() == wanted[1], "the answers outlive the worker that asked"
