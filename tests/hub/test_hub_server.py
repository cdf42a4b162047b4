"""The local test Hub does what the real clients expect of the Hub, both ways of uploading, and breaks as it is told to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_calls import ALICE, BOB, CAROL, READ_ONLY
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http

from hub_fixtures import here, home, hub  # noqa: F401
from hub_server import Hub

ONLY_LFS = pytest.mark.parametrize("hub", ["lfs"], indirect=True)
WEIGHTS = os.urandom(1 << 20) * 3  # three times the same MiB: chunks repeat
REPO = "safety-lab/tiny"


@pytest.fixture
def api(here: Hub) -> HfApi:
    return HfApi(endpoint=here.url, token=ALICE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "model"
    (out / "sub").mkdir(parents=True)
    (out / "model.safetensors").write_bytes(WEIGHTS)
    (out / "config.json").write_text("{}\n")
    (out / "sub" / "note é.txt").write_text("n\n")
    (out / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# Tiny\n")
    return out


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's retries without their pauses."""
    clock = {name: getattr(_http.time, name) for name in ("time", "monotonic", "perf_counter")}
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, **clock))


# --- the real client's round trip -----------------------------------------------------------------------------------------------


def test_a_folder_goes_up_and_comes_down_as_it_was(api: HfApi, here: Hub, folder: Path, home: Path) -> None:
    api.create_repo(REPO, private=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid, "nothing changed, so no commit"
    assert here.seen("PUT /lfs/") == (0 if here.has_xet else 1)
    assert bool(here.seen("POST /v1/shards")) == here.has_xet

    info = api.model_info(REPO, files_metadata=True)
    assert (info.sha, info.private, info.card_data.license) == (first.oid, True, "mit")
    assert {file.rfilename: file.size for file in info.siblings}["model.safetensors"] == len(WEIGHTS)
    listed = {item.path: item for item in api.list_repo_tree(REPO, recursive=True, expand=True)}
    assert listed["sub/note é.txt"].last_commit.oid == first.oid
    assert bool(listed["model.safetensors"].xet_hash) == here.has_xet
    assert [item.path for item in api.list_repo_tree(REPO, "sub")] == ["sub/note é.txt"]
    assert [item.path for item in api.get_paths_info(REPO, ["sub", "gone", "config.json"])] == ["sub", "config.json"]

    got = Path(snapshot_download(REPO, token=ALICE, local_dir=home / "got"))
    assert (got / "model.safetensors").read_bytes() == WEIGHTS
    assert (got / "sub" / "note é.txt").read_text() == "n\n"
    assert bool(here.seen("GET /v1/reconstructions")) == here.has_xet, "Xet files come down by Xet"
    assert bool(here.seen("GET /cdn/")) != here.has_xet


def test_a_changed_chunk_is_all_that_goes_up_again(api: HfApi, here: Hub, folder: Path) -> None:
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    stored = sum(path.stat().st_size for path in here.xet.folder.iterdir())
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-10] + b"0123456789")
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert here.store.read(here.store.repos[f"models/{REPO}"], "model.safetensors")[-10:] == b"0123456789"
    if here.has_xet:
        assert sum(path.stat().st_size for path in here.xet.folder.iterdir()) - stored < 400_000


def test_refs_history_and_ranges(api: HfApi, here: Hub, folder: Path) -> None:
    api.create_repo(REPO)
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="pr/side", revision=first.oid)
    api.delete_file("config.json", REPO)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "config.json", token=ALICE)
    assert Path(hf_hub_download(REPO, "config.json", revision="v1", token=ALICE)).read_text() == "{}\n"
    assert Path(hf_hub_download(REPO, "config.json", revision="pr/side", token=ALICE)).parent.name == first.oid
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "config.json", revision="v2", token=ALICE)
    assert [commit.title for commit in api.list_repo_commits(REPO)][-1] == "initial commit"
    refs = api.list_repo_refs(REPO)
    assert ([ref.name for ref in refs.branches], [ref.name for ref in refs.tags]) == (["main", "pr/side"], ["v1"])
    api.delete_branch(REPO, branch="pr/side")
    api.delete_tag(REPO, tag="v1")
    assert len(api.list_repo_refs(REPO).branches) == 1

    files = HfFileSystem(endpoint=here.url, token=ALICE)
    with files.open(f"{REPO}/model.safetensors", "rb") as file:
        file.seek(1_000_000)
        assert file.read(500) == WEIGHTS[1_000_000:1_000_500]
    with files.open(f"{REPO}/new.txt", "w") as file:
        file.write("new")
    assert files.read_text(f"{REPO}/new.txt") == "new"
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)


def test_pull_requests(api: HfApi, here: Hub, folder: Path) -> None:
    api.create_repo(REPO)
    add = [CommitOperationAdd("a.txt", b"a"), CommitOperationAdd("w.safetensors", b"w" * 100)]
    opened = HfApi(endpoint=here.url, token=CAROL).create_commit(REPO, add, commit_message="From outside", create_pr=True)
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    assert not api.file_exists(REPO, "a.txt")
    assert api.file_exists(REPO, "a.txt", revision="refs/pr/1")
    assert [one.title for one in api.get_repo_discussions(REPO)] == ["From outside"]
    api.merge_pull_request(REPO, 1)
    assert api.file_exists(REPO, "w.safetensors")
    assert api.get_discussion_details(REPO, 1).status == "merged"
    second = api.upload_folder(repo_id=REPO, folder_path=folder, create_pr=True)
    assert second.pr_num == 2
    api.comment_discussion(REPO, 2, "no")
    api.change_discussion_status(REPO, 2, "closed")
    assert [event.type for event in api.get_discussion_details(REPO, 2).events] == ["comment", "comment", "status-change"]


@ONLY_LFS
def test_who_may_do_what(api: HfApi, here: Hub, folder: Path) -> None:
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    for token in (CAROL, False):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(REPO, token=token)
    assert api.model_info(REPO, token=BOB).private
    api.update_repo_settings(REPO, private=False)
    assert api.model_info(REPO, token=False).private is False
    for token in (CAROL, READ_ONLY):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=REPO, token=token)
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_repo("safety-lab/other", token=token)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_" + "y" * 34)
    assert api.whoami()["orgs"][0]["name"] == "safety-lab"
    api.update_repo_settings(REPO, gated="manual")
    assert api.model_info(REPO, token=False).gated == "manual", "the page of a gated repository is public"
    for token in (CAROL, False):
        with pytest.raises(GatedRepoError):
            hf_hub_download(REPO, "config.json", token=token)
    api.grant_access(REPO, user="carol")
    assert hf_hub_download(REPO, "config.json", token=CAROL)
    api.auth_check(REPO)
    assert [model.id for model in api.list_models(author="safety-lab")] == [REPO]
    assert api.duplicate_repo(REPO, "alice/copy").repo_id == "alice/copy"
    assert api.file_exists("alice/copy", "model.safetensors")


# --- what it refuses ------------------------------------------------------------------------------------------------------------

CARDS = {
    "unknown licence": "license: mine",
    "other without a name": "license: other",
    "no YAML": "license: [mit",
    "base model": "base_model: 'a b'",
    "model-index without a metric value": "model-index: [{name: m, results: [{task: {type: t}, dataset: {type: d, name: d},"
    " metrics: [{type: dsr, value: null}]}]}]",
}


@ONLY_LFS
@pytest.mark.parametrize("front", CARDS.values(), ids=CARDS.keys())
def test_a_card_that_the_hub_would_refuse(front: str, api: HfApi, here: Hub) -> None:
    api.create_repo(REPO)
    text = f"---\n{front}\n---\n"
    with pytest.raises(ValueError, match="metadata"):
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=REPO)
    ModelCard("---\nlicense: mit\n---\n").validate()


DATASET_CARDS = {
    "viewer": ("viewer: maybe", False),
    "field kind": ("extra_gated_fields: {Name: string}", False),
    "select without options": ("extra_gated_fields: {Use: {type: select}}", False),
    "good": ("viewer: false\nextra_gated_fields: {Name: text, Use: {type: select, options: [a]}}\nextra_gated_prompt: p", True),
}


@ONLY_LFS
@pytest.mark.parametrize(("front", "good"), DATASET_CARDS.values(), ids=DATASET_CARDS.keys())
def test_a_dataset_card(front: str, good: bool, api: HfApi, here: Hub) -> None:
    api.create_repo(REPO, repo_type="dataset")
    send: dict[str, Any] = {"path_or_fileobj": f"---\n{front}\n---\n".encode(), "path_in_repo": "README.md", "repo_type": "dataset"}
    if good:
        api.upload_file(repo_id=REPO, **send)
    else:
        with pytest.raises(ValueError, match="metadata"):
            api.upload_file(repo_id=REPO, **send)


RESULTS = {
    "good": ([{"dataset": {"id": "a/b", "task_id": "t"}, "value": 0.5}], True),
    "no task": ([{"dataset": {"id": "a/b"}, "value": 0.5}], False),
    "null value": ([{"dataset": {"id": "a/b", "task_id": "t"}, "value": None}], False),
    "no list": ({"dataset": 1}, False),
}


@ONLY_LFS
@pytest.mark.parametrize(("entries", "good"), RESULTS.values(), ids=RESULTS.keys())
def test_evaluation_results(entries: Any, good: bool, api: HfApi, here: Hub) -> None:
    api.create_repo(REPO)
    send: dict[str, Any] = {"path_or_fileobj": json.dumps(entries).encode(), "path_in_repo": ".eval_results/vsb.yaml", "repo_id": REPO}
    if good:
        api.upload_file(**send)
        assert [result.value for result in api.model_info(REPO, expand=["evalResults"]).eval_results] == [0.5]
    else:
        with pytest.raises(BadRequestError):
            api.upload_file(**send)


@ONLY_LFS
def test_a_commit_is_all_or_nothing(api: HfApi, here: Hub) -> None:
    api.create_repo(REPO)
    before = api.model_info(REPO).sha
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(REPO, [CommitOperationAdd("a.txt", b"a")], commit_message="m", parent_commit="0" * 40)
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationAdd("a.txt", b"a"), CommitOperationDelete("gone.txt")], commit_message="m")
    assert api.model_info(REPO).sha == before


# --- faults ---------------------------------------------------------------------------------------------------------------------


@ONLY_LFS
@pytest.mark.parametrize("kind", ["429", "500", "503", "cut", "lost"])
def test_a_client_gets_over_a_passing_fault(kind: str, api: HfApi, here: Hub, folder: Path, impatient: None) -> None:
    api.create_repo(REPO)
    fault = here.fail("PUT /lfs/", kind, times=2)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert fault.seen == 2
    assert Path(hf_hub_download(REPO, "model.safetensors", token=ALICE)).read_bytes() == WEIGHTS


@ONLY_LFS
@pytest.mark.parametrize("kind", ["500", "cut"])
def test_a_lasting_fault_leaves_nothing_visible(kind: str, api: HfApi, here: Hub, folder: Path, impatient: None) -> None:
    api.create_repo(REPO)
    before = api.model_info(REPO).sha
    here.fail("PUT /lfs/", kind, times=99)
    with pytest.raises((HfHubHTTPError, RuntimeError)):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert api.model_info(REPO).sha == before
    here.faults.clear()
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert api.file_exists(REPO, "model.safetensors")


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_xet_gets_over_a_fault(api: HfApi, here: Hub, folder: Path) -> None:
    api.create_repo(REPO)
    fault = here.fail("POST /v1/xorbs/", "500")
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert fault.seen == 1
    here.fail("GET /xorbs/", "cut_reply")
    assert Path(hf_hub_download(REPO, "model.safetensors", token=ALICE)).read_bytes() == WEIGHTS


@ONLY_LFS
def test_a_changed_byte_and_a_wrong_etag_come_through(api: HfApi, here: Hub, folder: Path) -> None:
    """huggingface_hub does not check what it gets: whoever publishes must compare."""
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    here.fail("GET /cdn/", "garbage")
    assert Path(hf_hub_download(REPO, "model.safetensors", token=ALICE)).read_bytes() != WEIGHTS
    here.fail("HEAD .*config.json", "etag")
    assert "0" * 40 in str(Path(hf_hub_download(REPO, "config.json", token=ALICE)).resolve())


@ONLY_LFS
def test_slow(api: HfApi, here: Hub) -> None:
    here.fail("whoami", "slow", seconds=0.3)
    assert api.whoami()["name"] == "alice"


# --- transformers and datasets, in a process of their own -----------------------------------------------------------------------

ROUND = """
import json, sys
import numpy as np
import torch
from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
small = Qwen2Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
model = Qwen2ForCausalLM(small).eval()
pushed = model.push_to_hub("safety-lab/qwen", private=True)
again = AutoModelForCausalLM.from_pretrained("safety-lab/qwen", revision=pushed.oid).eval()
ids = torch.arange(5)[None]
same = torch.equal(model(ids).logits, again(ids).logits)
rows = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
DatasetDict({"hh": Dataset.from_dict(rows), "safeq": Dataset.from_dict(rows)}).push_to_hub("safety-lab/set", private=True)
whole = load_dataset("safety-lab/set", split="hh")
stream = list(load_dataset("safety-lab/set", split="safeq", streaming=True))
print(json.dumps([same, whole["text"][:], [row["label"] for row in stream], get_dataset_split_names("safety-lab/set")]))
"""


def test_transformers_and_datasets_work_with_it(hub: Hub, home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ROUND], env=hub.env(home), cwd=home, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{hub.log}"
    assert json.loads(done.stdout.splitlines()[-1]) == [True, ["a", "b", "c"], [0, 1, 0], ["hh", "safeq"]]
