"""`videosafety publish model` against the local test Hub: round trips, what is not sent, pull requests, tags and visibility."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_calls import CAROL
from huggingface_hub import HfApi, ModelCard
from model_cases import KEY, ONLY_LFS, ONLY_XET, REPO, branches, folder, made, main_of, published, quick, refused  # noqa: F401
from typer.testing import CliRunner

from hub_fixtures import here, home, hub  # noqa: F401
from hub_server import Hub
from videosafety import publish
from videosafety.hf_models.fold import fold

# --- the round trip ---------------------------------------------------------------------------------------------------------------------

STRANGER = """
import json, sys
sys.modules["videosafety"] = None  # nobody has it
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

repo, commit = sys.argv[1:]
pins = {"revision": commit, "code_revision": commit, "trust_remote_code": True}
model = AutoModelForImageTextToText.from_pretrained(repo, **pins).eval()
processor = AutoProcessor.from_pretrained(repo, **pins)
chat = [[{"role": "user", "content": [{"type": "text", "text": "Is it safe?"}]}]]
inputs = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(json.dumps([type(model).__name__, model.alarm_probs(**inputs)[0, 1].item()]))
"""


def stranger(hub: Hub, home: Path, commit: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, REPO, commit], env=hub.env(home), cwd=home, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_what_goes_up_loads_in_a_fresh_process_at_its_commit(here: Hub, home: Path, folder: Path) -> None:
    said = published(folder, "--revision-tag", "v1")
    commit = main_of(here)
    assert "equal bit for bit: text.alarm_logits, text.logits, video.alarm_logits, video.logits" in said
    assert f"revision={commit},trust_remote_code=True" in said
    repo = here.store.repos[KEY]
    assert (repo.private, branches(here), repo.tags) == (True, ["main"], {"v1": commit})
    assert here.seen("PUT /lfs/") == (0 if here.has_xet else 1), "the weights went up once"
    uploads = here.store.at(repo, "main").files
    assert {name for name in uploads} == {path.name for path in folder.iterdir()} | {".gitattributes"}
    assert all(here.store.read(repo, path.name) == path.read_bytes() for path in folder.iterdir() if path.name != "README.md")

    kind, probability = stranger(here, home, commit)
    assert kind == "AlarmVideoLlama3ForConditionalGeneration"
    assert 0 < probability < 1
    assert [path.name for path in (home / "hub" / "models--safety-lab--tiny" / "snapshots").iterdir()] == [commit]

    again = published(folder, "--revision-tag", "v1")
    assert f"nothing has changed, it stays at commit {commit}" in again
    assert main_of(here) == commit
    assert len(repo.history) == 3, "the first of a repository, the side branch, main"


@pytest.mark.slow  # `make test-slow`
@ONLY_XET
def test_from_training_to_a_card_with_figures(here: Hub, home: Path, folder: Path, lmms_eval: Callable[..., Any]) -> None:
    published(folder, "--public")
    commit = main_of(here)
    pinned = f"pretrained={REPO},revision={commit},trust_remote_code=True"
    env = hub_only(here.settings(home))
    done = lmms_eval("--model", "videosafety_r1", "--model_args", pinned, "--tasks", "vsb_hh", "--limit", "2", **env)
    assert done.results()["results"]["vsb_hh"], done.log[-2000:]
    assert done.results()["config"]["model_args"]
    out = CliRunner().invoke(publish.app, ["results", str(done.folder), "--model", REPO, "--partial"])
    assert out.exit_code == 0, out.output
    shown = HfApi(token=False).model_info(REPO)
    assert "vsb_hh" in here.store.read(here.store.repos[KEY], "README.md").decode()
    assert shown.private is False
    with_results = main_of(here)
    assert with_results != commit
    assert "nothing has changed" in published(folder), "what `publish results` wrote stays, and is no change"
    assert main_of(here) == with_results
    (folder / "generation_config.json").write_text(
        json.dumps(json.loads((folder / "generation_config.json").read_text()) | {"max_length": 9})
    )
    published(folder)
    assert main_of(here) != with_results
    assert "safety_results.json" in here.store.at(here.store.repos[KEY], "main").files
    assert "vsb_hh" in here.store.read(here.store.repos[KEY], "README.md").decode()


@ONLY_LFS
def test_what_only_the_run_needs_stays_here(here: Hub, folder: Path, quick: Any) -> None:
    (folder / "training_recipe.json").write_text("{}")
    for name in ("checkpoint-10/optimizer.pt", "checkpoint-9/optimizer.pt", "runs/Nov21_host/events.out.tfevents.1.host.1.0"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    published(folder)
    there = here.store.at(here.store.repos[KEY], "main").files
    assert not [name for name in there if name.startswith(("checkpoint-", "runs/"))]


EVALUATED = """
import json, sys
from videosafety.lmms_eval_tasks.model import VideoSafetyR1

found = []
for revision in sys.argv[2:]:
    model = VideoSafetyR1(pretrained=sys.argv[1], revision=revision, trust_remote_code=True)
    found.append([model.settings["revision"], model.settings["commit"], model.journal.file.parent.name])
print(json.dumps(found))
"""


@ONLY_LFS
def test_a_branch_is_evaluated_at_the_commit_that_it_stands_for(here: Hub, home: Path, folder: Path, quick: Any) -> None:
    """The code is the repository's own: there transformers leaves the commit unsaid, and a moved branch would go on in the old journal."""
    published(folder, "--revision-tag", "v1")
    old = main_of(here)
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="more.json", repo_id=REPO)
    new = main_of(here)
    command = [sys.executable, "-c", EVALUATED, REPO, "v1", old, "main"]
    done = subprocess.run(command, env=here.env(home), cwd=home, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    by_tag, by_commit, by_branch = json.loads(done.stdout.splitlines()[-1])
    assert [by_tag[:2], by_commit[:2], by_branch[:2]] == [["v1", old], [old, old], ["main", new]]
    assert by_branch[2] != by_tag[2]


def hub_only(settings: dict[str, str]) -> dict[str, str]:
    """For lmms-eval: the Hub's settings, but the data sets' cache of the session."""
    return {name: value for name, value in settings.items() if name != "HF_DATASETS_CACHE"}


@pytest.mark.slow  # `make test-slow`
@ONLY_LFS
def test_a_folded_checkpoint_needs_no_code(here: Hub, made: Path, tmp_path: Path) -> None:
    said = published(fold(made, tmp_path / "out"))
    assert "trust_remote_code" not in said
    assert "equal bit for bit: text.logits, video.logits" in said
    card = here.store.read(here.store.repos[KEY], "README.md").decode()
    assert "trust_remote_code" not in card
    assert "alarm_heads.safetensors" in card


# --- what is not sent -------------------------------------------------------------------------------------------------------------------


@ONLY_LFS
def test_a_dry_run_shows_all_and_sends_nothing(here: Hub, folder: Path) -> None:
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"x")
    (folder / ".env").write_text("A=1")
    said = published(folder, "--dry-run", "--exclude", "checkpoint-*")
    assert re.search(r"^ +[\d,]+  model.safetensors$", said, re.MULTILINE)
    assert re.search(r"left out  checkpoint-5/optimizer.pt$", said, re.MULTILINE)
    assert re.search(r"left out  .env$", said, re.MULTILINE)
    assert ModelCard(said.partition("--- README.md ---\n")[2]).data.license == "apache-2.0"
    assert not here.seen("^(POST|PUT|DELETE)")
    assert not here.store.repos


def test_a_dry_run_needs_no_network(folder: Path) -> None:
    said = published(folder, "--dry-run")
    assert f"Shown as if {REPO} held no results yet" in said
    assert "# tiny" in said


@ONLY_LFS
def test_files_that_are_gone_here_go_there(here: Hub, folder: Path, quick: list[Any]) -> None:
    (folder / "notes.txt").write_text("n")
    published(folder)
    HfApi().upload_file(path_or_fileobj=b"[]", path_in_repo=".eval_results/other.yaml", repo_id=REPO)
    (folder / "notes.txt").unlink()
    assert "removed notes.txt" in published(folder)
    files = here.store.at(here.store.repos[KEY], "main").files
    assert "notes.txt" not in files
    assert {".eval_results/other.yaml", ".gitattributes"} <= set(files)


@ONLY_LFS
def test_code_that_is_not_ours_is_run_only_when_the_user_says_so(here: Hub, folder: Path, quick: list[Any]) -> None:
    code = folder / "alarm_core.py"
    code.write_text(code.read_text() + "\nMORE = 1\n")
    says = refused(folder)
    assert "alarm_core.py" in says
    assert "--trust-remote-code" in says
    assert not quick
    assert not here.store.repos
    published(folder, "--trust-remote-code")


# --- pull requests, tags, visibility ----------------------------------------------------------------------------------------------------


@ONLY_LFS
def test_a_pull_request_leaves_main_alone(here: Hub, folder: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing to propose a change to" in refused(folder, "--create-pr")
    published(folder, "--public")
    before = main_of(here)
    (folder / "notes.txt").write_text("n")
    monkeypatch.setenv("HF_TOKEN", CAROL)
    assert "use a token that may write there" in refused(folder)
    said = published(folder, "--create-pr")
    assert f"{here.url}/{REPO}/discussions/1" in said
    assert main_of(here) == before
    assert "notes.txt" in here.store.at(here.store.repos[KEY], "refs/pr/1").files
    assert quick[-1] == (REPO, here.store.repos[KEY].branches["refs/pr/1"]), "it was loaded back from the pull request"
    assert "open already" in published(folder, "--create-pr")
    assert len(here.store.repos[KEY].discussions) == 1


@ONLY_LFS
def test_tags_and_visibility(here: Hub, folder: Path, quick: list[Any]) -> None:
    published(folder, "--revision-tag", "v1")
    assert "nothing has changed" in published(folder, "--public"), "an earlier run that was cut before the end is finished"
    assert here.store.repos[KEY].private is False
    published(folder)
    assert here.store.repos[KEY].private is False, "nobody said that it is to be hidden"
    (folder / "notes.txt").write_text("n")
    before = main_of(here)
    assert "tags are not moved" in refused(folder, "--revision-tag", "v1")
    assert main_of(here) == before
    published(folder, "--revision-tag", "v2")
    assert here.store.repos[KEY].tags == {"v1": before, "v2": main_of(here)}


@pytest.mark.parametrize("args", [("--create-pr", "--public"), ("--create-pr", "--revision-tag", "v1")])
def test_options_that_contradict_each_other(args: tuple[str, ...], folder: Path) -> None:
    assert "--create-pr leaves the repository as it is" in refused(folder, *args)
