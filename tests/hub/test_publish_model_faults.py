"""`videosafety publish model` when things go wrong: main never holds what was not loaded back, the next run finishes, nothing leaks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_calls import ALICE, BOB
from huggingface_hub import HfApi
from model_cases import (  # noqa: F401
    KEY,
    ONLY_LFS,
    ONLY_XET,
    REPO,
    branches,
    folder,
    impatient,
    made,
    main_of,
    published,
    quick,
    refused,
    run,
)
from safetensors.torch import save_file

from hub_fixtures import here, home, hub  # noqa: F401
from hub_server import Hub
from videosafety.hub_cards import publish as publishing

# --- faults -----------------------------------------------------------------------------------------------------------------------------


@ONLY_LFS
@pytest.mark.parametrize("kind", ["429", "500", "cut", "lost"])
def test_a_passing_fault_is_got_over(kind: str, here: Hub, folder: Path, quick: list[Any], impatient: None) -> None:
    fault = here.fail("PUT /lfs/", kind, times=2)
    published(folder)
    assert fault.seen == 2


ANYWHERE = {
    "asking": "GET /api/models/safety-lab/tiny$",
    "the tree": "GET /api/models/.*/tree/",
    "the branch": "POST /api/models/.*/branch/",
    "the metadata": "POST /api/validate-yaml",
    "preupload": "POST /api/models/.*/preupload/",
    "LFS": "POST .*/info/lfs/objects/batch",
    "the weights": "PUT /lfs/",
    "the side commit": "POST /api/models/.*/commit/videosafety-publish",
    "main": "POST /api/models/.*/commit/main",
}


@ONLY_LFS
@pytest.mark.parametrize("kind", ["429", "500", "cut"])
@pytest.mark.parametrize("step", ANYWHERE.values(), ids=ANYWHERE.keys())
def test_a_lasting_fault_anywhere_leaves_main_alone_and_the_next_run_finishes(
    step: str, kind: str, here: Hub, folder: Path, quick: list[Any], impatient: None
) -> None:
    HfApi().create_repo(REPO)
    before = main_of(here)
    fault = here.fail(step, kind, times=99)
    says = refused(folder)
    assert fault.seen
    assert re.search(r"run this again|log in|mend", says), says
    assert main_of(here) == before
    assert branches(here) == ["main"]
    here.faults.clear()
    published(folder)
    assert main_of(here) != before
    assert branches(here) == ["main"]


@ONLY_LFS
def test_a_repository_that_cannot_be_made(here: Hub, folder: Path, quick: list[Any], impatient: None) -> None:
    here.fail("POST /api/repos/create", "500", times=99)
    assert "run this again" in refused(folder)
    assert not here.store.repos
    here.faults.clear()
    published(folder)


@ONLY_XET
def test_a_lasting_fault_of_xet(here: Hub, folder: Path, quick: list[Any], impatient: None) -> None:
    HfApi().create_repo(REPO)
    before = main_of(here)
    here.fail("POST /v1/xorbs/", "400", times=99)
    assert "run this again" in refused(folder)
    assert (main_of(here), branches(here)) == (before, ["main"])
    here.faults.clear()
    published(folder)


@ONLY_LFS
def test_what_is_not_there_afterwards_is_found(here: Hub, folder: Path, quick: list[Any]) -> None:
    """A .gitignore in the repository has the Hub leave files out, and no client says so."""
    api = HfApi()
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="chat_template.jinja", repo_id=REPO)
    before = main_of(here)
    real = here.store.keep
    here.store.keep = lambda data: real(data.replace(b"visual_alarm", b"visual_alarn"))  # type: ignore[method-assign]
    says = refused(folder)
    assert "the Hub does not hold what was sent" in says
    assert (main_of(here), branches(here)) == (before, ["main"])
    assert len(quick) == 1, "and nothing of it was loaded"


@pytest.mark.slow  # `make test-slow`
@ONLY_LFS
def test_bytes_that_change_on_the_way_back_are_found(here: Hub, folder: Path) -> None:
    weights = (folder / "model.safetensors").stat().st_size
    here.fail("GET /cdn/", "garbage")  # the first byte of the file, which is the length of its header
    says = refused(folder)
    assert "main is untouched" in says
    assert branches(here) == ["main"]
    assert len(here.store.at(here.store.repos[KEY], "main").files) == 1
    assert here.store.path(next(iter(here.store.blobs.glob("?" * 64))).name).stat().st_size == weights


@ONLY_LFS
def test_other_logits_are_no_success(here: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(source: str, revision: str | None, code: bool, scratch: Path) -> Path:
        scratch.mkdir(parents=True)
        save_file({"text.logits": torch.tensor([1.0, 2.5 if revision else 2.0])}, scratch / "computed.safetensors")
        return scratch / "computed.safetensors"

    monkeypatch.setattr(publishing, "compute", compute)
    assert "computes other text.logits than the folder, by up to 0.5; main is untouched" in refused(folder)
    assert len(here.store.at(here.store.repos[KEY], "main").files) == 1


@pytest.mark.slow  # `make test-slow`
@ONLY_LFS
def test_a_checkpoint_that_does_not_load_here_is_not_sent(here: Hub, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    says = refused(folder)
    assert "cannot be loaded by transformers alone" in says
    assert "nothing was sent" in says
    assert not here.store.repos


NOT_LOADED = """
from videosafety import publish
from videosafety.hub_cards import publish as publishing

publishing.compute = lambda source, *_: source
publish.app()
"""


@ONLY_LFS
def test_a_run_that_is_killed_is_finished_by_the_next(here: Hub, home: Path, folder: Path, quick: list[Any]) -> None:
    here.fail("PUT /lfs/", "hang")
    command = [sys.executable, "-c", NOT_LOADED, "model", str(folder), "--repo", REPO]
    cut = subprocess.Popen([*command, "--license", "mit"], env=here.env(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        here.wait_for("PUT /lfs/.* -> hangs", 120)
    finally:
        cut.send_signal(signal.SIGKILL)
        cut.wait()
    assert branches(here) != ["main"], "the side branch of the run that was killed"
    assert len(here.store.at(here.store.repos[KEY], "main").files) == 1, "nothing half-written is visible"
    published(folder)
    assert branches(here) == ["main"]
    assert "model.safetensors" in here.store.at(here.store.repos[KEY], "main").files


# --- secrets ----------------------------------------------------------------------------------------------------------------------------


@ONLY_LFS
@pytest.mark.parametrize("error", [RuntimeError, OSError, ValueError])
def test_a_token_inside_an_exception_is_never_printed(
    error: type[Exception], here: Hub, folder: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def leak(*_: Any, **__: Any) -> None:
        raise error(f"Authorization: Bearer {ALICE} was refused for https://alice:{BOB}@example.org")

    monkeypatch.setattr(HfApi, "create_commit", leak)
    done = run(folder)
    assert done.exit_code == 2
    assert done.stderr.strip()
    for text in (done.output, caplog.text, *here.texts, *here.log):
        assert ALICE not in text
        assert BOB not in text
