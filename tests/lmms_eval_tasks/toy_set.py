"""A small made-up set, the servers that have it, and the fixtures of the tests that fetch it."""

from __future__ import annotations

import dataclasses
import io
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from data_servers import COMMIT, Site, serve, tarball

from videosafety.lmms_eval_tasks import download, fetch
from videosafety.lmms_eval_tasks.catalog import DataSet, Source, Task
from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.fetch import MARKER

NOISE = random.Random(0).randbytes(300_000)
FILES = {"data/rows.json": b'[{"id": 1}]', "data/images/1.png": NOISE, "README.md": b"read", "code/run.py": b"run"}
TASK = Task("toy", 1, "dsr", "image + text", "", "any", "ready", None)


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, content in files.items():
            packed.writestr(name.replace("__", "/"), content)
    return out.getvalue()


def toy(kind: str = "github", **changes: Any) -> DataSet:
    source = Source(kind, "owner/name", COMMIT[:10] if kind == "github" else COMMIT, ("data/*",), "data")
    source = dataclasses.replace(source, **changes.pop("source", {}))
    facts = {
        "name": "toy", "title": "Toy", "paper": "", "arxiv": None, "about": "", "source": source, "unpack": {}, "licence": "MIT",
        "gate": None, "size_mb": None, "layout": ("rows.json", "images/*.png"), "sha256": {}, "note": "", "tasks": (TASK,), "reference": (),
    }  # fmt: skip
    return DataSet(**(facts | changes))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serve(Site(balls={COMMIT: tarball(FILES)}, files=dict(FILES))) as running:
        monkeypatch.setattr(download, "GITHUB_API", running.url)
        monkeypatch.setattr(download, "GITHUB_TARBALLS", running.url)
        monkeypatch.setattr(download, "HUB", running.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataSet]:
    """Makes the catalog know one set."""

    def know(*args: Any, **changes: Any) -> DataSet:
        found = toy(*args, **changes)
        monkeypatch.setattr(fetch, "catalog", lambda: {"toy": found})
        return found

    return know


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != MARKER}


def refusal(call: Callable[[], Any]) -> str:
    """The one line of a MissingData."""
    with pytest.raises(MissingData) as caught:
        call()
    text = str(caught.value)
    assert text.startswith("videosafety: ")
    assert "\n" not in text
    return text


WANTED = {"rows.json": FILES["data/rows.json"], "images/1.png": NOISE}
kinds = pytest.mark.parametrize("kind", ["github", "hub"])
