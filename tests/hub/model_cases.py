"""What the tests of `videosafety publish model` share: tiny checkpoints, the command as the user types it, and what main then holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.utils import _http
from safetensors.torch import save_file
from typer.testing import CliRunner

from hub_server import Hub
from videosafety import publish
from videosafety.hf_models.tiny import build_tiny
from videosafety.hub_cards import publish as publishing

ONLY_LFS = pytest.mark.parametrize("hub", ["lfs"], indirect=True)
ONLY_XET = pytest.mark.parametrize("hub", ["xet"], indirect=True)
REPO = "safety-lab/tiny"
KEY = f"models/{REPO}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny alarm checkpoint; not to be changed."""
    return build_tiny(tmp_path_factory.mktemp("made") / "alarm")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """One to change."""
    return Path(shutil.copytree(made, tmp_path / "alarm"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """No fresh processes: what a checkpoint computes is always the same. Tells what was to be loaded."""
    asked = []

    def compute(source: str, revision: str | None, code: bool, scratch: Path) -> Path:
        asked.append((source, revision))
        scratch.mkdir(parents=True)
        save_file({"text.logits": torch.zeros(1)}, scratch / "computed.safetensors")
        return scratch / "computed.safetensors"

    monkeypatch.setattr(publishing, "compute", compute)
    return asked


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's retries without their pauses."""
    clock = {name: getattr(_http.time, name) for name in ("time", "monotonic", "perf_counter")}
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, **clock))


def run(folder: Path, *args: str, repo: str = REPO) -> Any:
    done = CliRunner().invoke(publish.app, ["model", str(folder), "--repo", repo, "--license", "apache-2.0", *args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def published(folder: Path, *args: str, repo: str = REPO) -> str:
    """Standard output of a command that works."""
    done = run(folder, *args, repo=repo)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(folder: Path, *args: str, repo: str = REPO) -> str:
    """Standard error of one that does not."""
    done = run(folder, *args, repo=repo)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return done.stderr


def main_of(hub: Hub) -> str:
    return hub.store.repos[KEY].branches["main"]


def branches(hub: Hub) -> list[str]:
    return sorted(hub.store.repos[KEY].branches)
